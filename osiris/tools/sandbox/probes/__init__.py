"""Checks of what this machine can do for a sandbox."""
