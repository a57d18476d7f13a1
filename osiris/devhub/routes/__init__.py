"""The HTTP faces of the hub, one topic per module."""
