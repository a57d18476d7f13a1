"""The operator's commands. Like `bootstrap`, this package may import every other one."""
