"""Channels outside of GitHub: what people are told there."""
