"""The domain and its decisions: the standard library only, no await, no clock, no client."""
