"""What the operator's commands show and ask for. Like `bootstrap`, it may know every part."""
