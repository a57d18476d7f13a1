"""What a repository allows: gates, budgets and limits, as one value."""

from collections.abc import Mapping
from dataclasses import dataclass, field

REGISTRIES = "registries"
"""Stands in a list of hosts for all package registries that the machine's own tools are configured
for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings of one repository (`.github/osiris.yml`), each with its default.

    `steps`, `minutes` and `usd` (US dollars; None: any) are the budget of one run; `models` names
    who thinks, as VENDOR:MODEL by role (`plan`, `build`); `deny` are path prefixes a run may not
    change; `setup` are the commands that get a new workspace ready (None: nothing is said of them),
    with a network of the package registries and the hosts `setup_hosts`; `agent_hosts` are those
    that the agent's own commands may reach, if the operator allows that (each HOST, HOST:PORT,
    *.HOST or REGISTRIES); `broken` says why the repository's file could not be read, and no run
    starts until it is mended.
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
