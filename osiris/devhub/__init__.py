"""A small GitHub for one's own machine: real git, REST, GraphQL, webhooks and a review page."""
