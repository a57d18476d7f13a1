"""The permissions and events that the GitHub App needs; `app.yml` lists the same for GitHub."""

APP_PERMISSIONS = {
    "contents": "write",
    "pull_requests": "write",
    "issues": "write",
    "checks": "write",
    "metadata": "read",
}
APP_EVENTS = ("issues", "issue_comment", "pull_request", "pull_request_review", "repository")
READ_EVENTS = (*APP_EVENTS, "installation", "installation_repositories")
"""The events that Osiris reads. The last two are sent to every App and cannot be subscribed to."""
