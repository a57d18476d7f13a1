"""What the operator and the repository may set: the only reader of the environment."""
