"""The environment in which git follows no settings but a repository's own."""

from collections.abc import Mapping
from typing import Final

HARDENED: Final[Mapping[str, str]] = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_TERMINAL_PROMPT": "0",
}
"""Neither the machine's settings and attributes nor its user's count, no object stands for another,
and git asks nobody for a password. See git(1), environment variables."""

EXPORTS: Final = "export " + " ".join(f"{name}={value}" for name, value in HARDENED.items())
"""The same as a line of a shell script."""
