"""The interfaces to people and to GitHub."""
