"""A real bug of a real project, from the issue to the merged fix: `make real`."""
