"""Fake model vendors: small servers on this machine that imitate the vendors' APIs and follow a
script, for tests and benchmarks."""
