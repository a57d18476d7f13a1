"""The disks of sessions, of a limited size, and the cached checkouts for new sessions."""
