"""What the parts ask of each other, in as few methods as they need. `bootstrap` joins them."""
