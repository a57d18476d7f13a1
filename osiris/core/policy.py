"""The policy of a repository: gates, budgets and limits, as one value."""

from collections.abc import Mapping
from dataclasses import dataclass, field

REGISTRIES = "registries"
"""Stands in a list of hosts for all package registries that the machine's own tools are configured
for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings of one repository (`.github/osiris.yml`), each with its default.

    `steps`, `minutes` and `usd` (US dollars; None: unlimited) are the budget of one run; `models`
    are VENDOR:MODEL by purpose (`plan`, `build`); `deny` are path prefixes that a run may not
    change; `setup` are the commands that prepare a new workspace (None: not configured), which can
    reach the package registries and `setup_hosts`; `agent_hosts` are the hosts that the agent's own
    commands may reach, if the operator allows it (each HOST, HOST:PORT, *.HOST or REGISTRIES);
    `broken` is why the repository's file could not be read: no run starts until it is corrected.
    """

    label: str = "osiris"
    steps: int = 60
    minutes: int = 30
    usd: float | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    deny: tuple[str, ...] = (".github/workflows/",)
    setup: tuple[str, ...] | None = None
    setup_hosts: tuple[str, ...] = ()
    agent_hosts: tuple[str, ...] = ()
    broken: str = ""
