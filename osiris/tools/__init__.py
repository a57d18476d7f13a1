"""The agent's hands: a sandbox, its sessions, and the tools that work in them."""
