"""A complete Osiris on one machine with nothing configured.

Like `bootstrap`, this package may import every other one.
"""
