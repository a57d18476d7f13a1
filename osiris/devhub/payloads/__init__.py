"""GitHub's JSON shapes, the same for REST answers and webhooks."""
