"""`.github/osiris.yml` of a repository, as a Policy."""

from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from osiris.errors import Refused
from osiris.policy import Policy

PATH = ".github/osiris.yml"
MODEL = r"^[a-z-]+:\S+$"
_DEFAULT = Policy()


class _Budget(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    steps: Annotated[int, Field(ge=1, le=1000)] = _DEFAULT.steps
    minutes: Annotated[int, Field(ge=1, le=24 * 60)] = _DEFAULT.minutes


class _Paths(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    deny: list[str] = list(_DEFAULT.deny)


class _Models(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    plan: Annotated[str, Field(pattern=MODEL)] = ""
    build: Annotated[str, Field(pattern=MODEL)] = ""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    label: Annotated[str, Field(min_length=1, max_length=50)] = _DEFAULT.label
    budget: _Budget = _Budget()
    paths: _Paths = _Paths()
    models: _Models = _Models()


def parse(text: str) -> Policy:
    """The policy a repository's file states; every key is optional. Raises Refused naming the key and the reason."""
    try:
        data = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:  # yaml lets the last three through
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise Refused(f"`{PATH}` is not YAML{where}; mend it on the default branch") from None
    try:
        file = _File.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise Refused(f"`{PATH}`: {key}: {first['msg'].lower()}; mend it on the default branch") from None
    return Policy(
        label=file.label,
        steps=file.budget.steps,
        minutes=file.budget.minutes,
        models={role: model for role, model in file.models.model_dump().items() if model},
        deny=tuple(file.paths.deny),
    )
