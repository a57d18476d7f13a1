"""Interfaces between the parts, each with as few methods as it needs. `bootstrap` joins them."""
