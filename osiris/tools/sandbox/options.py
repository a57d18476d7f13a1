"""How the operator of this machine wants its sandboxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from osiris.core.ports.sandbox import GIB

NetworkMode = Literal["none", "setup", "agent"]
"""Who may have a way out: nobody, set-ups, or agents too, where their repository says so."""


@dataclass(frozen=True, kw_only=True)
class SandboxOptions:
    """`toolchains` are folders that jails see read-only at the same place, with their `bin` in
    front of PATH; `weak` allows runs on a machine that has no limit for their memory; `cache` is
    how many bytes kept checkouts may take, and what set-ups left as many again; `environment` is
    that in which this machine's package tools are asked for their registries."""

    toolchains: Sequence[Path] = ()
    weak: bool = False
    network: NetworkMode = "setup"
    cache: int = 20 * GIB
    environment: Mapping[str, str] = field(default_factory=dict)
