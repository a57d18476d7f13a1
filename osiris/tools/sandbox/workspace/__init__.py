"""The workspace: its checkout, its set-up, its files, and the export of the work."""
