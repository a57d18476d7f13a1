"""`python -m osiris` is `osiris`."""

from osiris.cli import main

main()
