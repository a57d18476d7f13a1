"""`make fidelity`: how GitHub-shaped devhub is, and whether Osiris requests only what GitHub
offers."""
