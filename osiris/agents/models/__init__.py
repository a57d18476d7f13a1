"""Language models: which one answers, how it is called, and what it costs."""
