"""The tools that an agent may call, and the sandbox in which they work."""
