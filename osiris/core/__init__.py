"""What Osiris knows and decides: the standard library only, no await, no clock, no client."""
