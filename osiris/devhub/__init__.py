"""A small GitHub that runs on this machine: real git, REST, GraphQL, webhooks and a review page."""
