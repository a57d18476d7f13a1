"""A real bug in a real project, from the issue to the merged fix: `make real`."""
