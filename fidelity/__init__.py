"""`make fidelity`: how GitHub-shaped devhub is, and whether Osiris asks GitHub for what GitHub
knows."""
