"""What the GitHub App must be allowed and told; `app.yml` says the same to GitHub."""

APP_PERMISSIONS = {
    "contents": "write",
    "pull_requests": "write",
    "issues": "write",
    "checks": "write",
    "metadata": "read",
}
APP_EVENTS = ("issues", "issue_comment", "pull_request", "pull_request_review", "repository")
READ_EVENTS = (*APP_EVENTS, "installation", "installation_repositories")
"""What Osiris reads: the last two come to every App, and cannot be subscribed to."""
