"""The entry point of `python -m osiris`, which is the same as `osiris`."""

from osiris.cli import main

main()
