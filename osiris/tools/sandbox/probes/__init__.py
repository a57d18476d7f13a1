"""Probes of this machine: whether it can run a safe sandbox."""
