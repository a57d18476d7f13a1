"""GitHub's API and webhooks, and what people read there."""
