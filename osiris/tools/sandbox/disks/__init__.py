"""The disk of a session, of a limited size, and the checkouts that are kept for new ones."""
