"""The file `.github/osiris.yml` of a repository, parsed into a Policy."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from osiris.config.yaml_text import UnreadableYaml, load_yaml
from osiris.core.errors import Refused
from osiris.core.policy import REGISTRIES, Policy
from osiris.core.sanitize import clean_text, cut_text

PATH = ".github/osiris.yml"
MOST_COMMANDS, MOST_COMMAND = 50, 20_000  # setup commands; characters of one
MODEL = r"^[a-z-]+:\S+$"
HOST = re.compile(
    r"(\*\.)?([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]([a-z0-9-]*[a-z0-9])?(:[1-9][0-9]{0,4})?"
)
_DEFAULT = Policy()


class _Budget(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    steps: Annotated[int, Field(ge=1, le=1000)] = _DEFAULT.steps
    minutes: Annotated[int, Field(ge=1, le=24 * 60)] = _DEFAULT.minutes


class _Paths(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    deny: Annotated[list[Annotated[str, Field(max_length=500)]], Field(max_length=500)] = list(
        _DEFAULT.deny
    )


class _Models(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    plan: Annotated[str, Field(pattern=MODEL)] = ""
    build: Annotated[str, Field(pattern=MODEL)] = ""


_Command = Annotated[str, Field(min_length=1, max_length=MOST_COMMAND)]


def _validate_host(name: str) -> str:
    """Return a host name that contains a dot, which excludes numeric addresses and local machines
    of the operator."""
    if len(name) > 260 or not HOST.fullmatch(name):
        raise ValueError(
            f"{name[:80]!r} is not the name of a host, like example.com, *.example.com or"
            " example.com:8443"
        )
    return name


def _validate_agent_host(name: str) -> str:
    return name if name == REGISTRIES else _validate_host(name)


_Hosts = Annotated[list[Annotated[str, AfterValidator(_validate_host)]], Field(max_length=50)]
_AgentHosts = Annotated[
    list[Annotated[str, AfterValidator(_validate_agent_host)]], Field(max_length=50)
]


class _Commands(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    setup: _Command | Annotated[list[_Command], Field(max_length=MOST_COMMANDS)] = []


class _Network(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    setup: _Hosts = []
    agent: _AgentHosts = []


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    label: Annotated[str, Field(min_length=1, max_length=50)] = _DEFAULT.label
    budget: _Budget = _Budget()
    paths: _Paths = _Paths()
    models: _Models = _Models()
    commands: _Commands = _Commands()
    network: _Network = _Network()


def _read_commands(given: _Commands) -> tuple[str, ...] | None:
    if "setup" not in given.model_fields_set:
        return None
    return (given.setup,) if isinstance(given.setup, str) else tuple(given.setup)


def parse_policy(text: str) -> Policy:
    """Return the policy in a repository's file; every key is optional.

    Raises Refused naming the key and the reason.
    """
    try:
        data = load_yaml(text) or {}
    except UnreadableYaml as error:
        where = f" in line {error.line}" if error.line else ""
        raise Refused(f"`{PATH}` {error}{where}; fix it on the default branch") from None
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = (
            cut_text(" ".join(clean_text(".".join(map(str, first["loc"]))).split()), 100)
            or "the file"
        )
        raise Refused(
            f"`{PATH}`: {key}: {first['msg'].removeprefix('Value error, ').lower()}; fix it on the"
            " default branch"
        ) from None
    return Policy(
        label=file.label,
        steps=file.budget.steps,
        minutes=file.budget.minutes,
        models={role: model for role, model in file.models.model_dump().items() if model},
        deny=tuple(file.paths.deny),
        setup=_read_commands(file.commands),
        setup_hosts=tuple(file.network.setup),
        agent_hosts=tuple(file.network.agent),
    )
