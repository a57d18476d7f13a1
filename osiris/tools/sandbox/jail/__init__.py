"""The jail of one command: its namespaces, limits and process."""
