"""GitHub's own descriptions and examples, as published on npm: fetched when missing, exactly these
versions."""

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

from graphql import GraphQLSchema, build_schema

BUILD = Path(__file__).parent.parent / "build/fidelity"
PINNED = {
    "@octokit/openapi": "23.0.2",
    "@octokit/graphql-schema": "15.26.1",
    "@octokit/webhooks-examples": "7.6.1",
}


def fetch() -> None:
    """Bring the packages to BUILD. Raises RuntimeError when npm cannot."""
    if all(_version(name) == version for name, version in PINNED.items()):
        return
    BUILD.mkdir(parents=True, exist_ok=True)
    wanted = [f"{name}@{version}" for name, version in PINNED.items()]
    quiet = (
        "--no-save",
        "--no-package-lock",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
    )
    told = subprocess.run(
        ["npm", "install", *quiet, "--prefix", str(BUILD), *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    if told.returncode != 0 or any(_version(name) != version for name, version in PINNED.items()):
        raise RuntimeError(f"npm could not fetch {', '.join(wanted)}: {told.stderr.strip()[-500:]}")


def _folder(name: str) -> Path:
    return BUILD / "node_modules" / name


def _version(name: str) -> str:
    about = _folder(name) / "package.json"
    return str(json.loads(about.read_text())["version"]) if about.exists() else ""


@functools.cache
def openapi() -> dict[str, Any]:
    """GitHub's description of its REST API and webhooks."""
    text = (_folder("@octokit/openapi") / "generated/api.github.com.json").read_text()
    described: dict[str, Any] = json.loads(text)
    return described


@functools.cache
def graphql_schema() -> GraphQLSchema:
    return build_schema(
        (_folder("@octokit/graphql-schema") / "schema.graphql").read_text(), assume_valid=True
    )


@functools.cache
def webhook_examples() -> list[tuple[str, int, dict[str, Any]]]:
    """(event, number within the event, payload) of every recorded payload."""
    index = json.loads(
        (_folder("@octokit/webhooks-examples") / "api.github.com/index.json").read_text()
    )
    return [
        (event["name"], number, body)
        for event in index
        for number, body in enumerate(event["examples"], 1)
    ]
