"""The REST routes of the hub, one topic per module."""
