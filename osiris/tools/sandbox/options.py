"""The operator's options for the sandboxes of this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from osiris.core.ports.sandbox import GIB

NetworkMode = Literal["none", "setup", "agent"]
"""Which commands may access the network: none, those of set-ups, or those of agents too, where the
repository allows it."""


@dataclass(frozen=True, kw_only=True)
class SandboxOptions:
    """Options of the sandboxes.

    `toolchains` are folders that jails see read-only at the same path, with their `bin` in front of
    PATH. `weak` allows runs on a machine that cannot limit their memory. `cache` is the number of
    bytes that the checkout cache may take, and the setup cache as many again. `environment` is used
    when this machine's package tools are asked for their registries.
    """

    toolchains: Sequence[Path] = ()
    weak: bool = False
    network: NetworkMode = "setup"
    cache: int = 20 * GIB
    environment: Mapping[str, str] = field(default_factory=dict)
