"""Git on the host: repositories, remotes, and the import of a sandbox's work."""
