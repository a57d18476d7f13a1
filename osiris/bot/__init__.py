"""What people and GitHub see."""
