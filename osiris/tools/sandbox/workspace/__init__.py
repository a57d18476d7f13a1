"""The workspace of a session: its checkout, its set-up, its files, and the export of the work."""
