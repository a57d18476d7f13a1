"""GitHub's API and webhooks, and the text that people read on GitHub."""
