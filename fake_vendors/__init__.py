"""Model vendors on this machine: small servers that speak their wires and follow a script, for
tests and measures."""
