"""What thinks: the loop, the brains and the prompts."""
