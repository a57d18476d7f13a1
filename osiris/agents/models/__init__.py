"""Language models: the registry of vendors, the calls, and the prices."""
