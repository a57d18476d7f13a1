"""The sandbox: sessions, and what they are made of."""
