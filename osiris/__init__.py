"""Osiris turns a GitHub issue into a reviewed pull request."""

__version__ = "0.1.0"
