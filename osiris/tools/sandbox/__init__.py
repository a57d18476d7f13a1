"""The sandbox: its sessions and their parts."""
