"""The whole loop on one machine with nothing configured. Like `bootstrap`, it may know every
part."""
