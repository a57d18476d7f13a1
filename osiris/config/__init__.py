"""Configuration by the operator and by repositories. Only this package reads the environment."""
