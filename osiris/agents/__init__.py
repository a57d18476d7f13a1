"""The agent: its loop, the language models, the prompts, and the run of one task."""
