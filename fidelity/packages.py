"""GitHub's own descriptions and examples, in fixed versions from npm; they are downloaded if they
are missing."""

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

from graphql import GraphQLSchema, build_schema

BUILD_FOLDER = Path(__file__).parent.parent / "build/fidelity"
PINNED_VERSIONS = {
    "@octokit/openapi": "23.0.2",
    "@octokit/graphql-schema": "15.26.1",
    "@octokit/webhooks-examples": "7.6.1",
}


def fetch_packages() -> None:
    """Download the packages to BUILD_FOLDER. Raise RuntimeError if npm fails."""
    if all(_read_version(name) == version for name, version in PINNED_VERSIONS.items()):
        return
    BUILD_FOLDER.mkdir(parents=True, exist_ok=True)
    requirements = [f"{name}@{version}" for name, version in PINNED_VERSIONS.items()]
    options = (
        "--no-save",
        "--no-package-lock",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--loglevel=error",
    )
    result = subprocess.run(
        ["npm", "install", *options, "--prefix", str(BUILD_FOLDER), *requirements],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode != 0 or any(
        _read_version(name) != version for name, version in PINNED_VERSIONS.items()
    ):
        raise RuntimeError(
            f"npm could not fetch {', '.join(requirements)}: {result.stderr.strip()[-500:]}"
        )


def _get_folder(name: str) -> Path:
    return BUILD_FOLDER / "node_modules" / name


def _read_version(name: str) -> str:
    package_file = _get_folder(name) / "package.json"
    return str(json.loads(package_file.read_text())["version"]) if package_file.exists() else ""


@functools.cache
def load_openapi() -> dict[str, Any]:
    """Return GitHub's description of its REST API and webhooks."""
    text = (_get_folder("@octokit/openapi") / "generated/api.github.com.json").read_text()
    description: dict[str, Any] = json.loads(text)
    return description


@functools.cache
def load_graphql_schema() -> GraphQLSchema:
    return build_schema(
        (_get_folder("@octokit/graphql-schema") / "schema.graphql").read_text(), assume_valid=True
    )


@functools.cache
def load_webhook_examples() -> list[tuple[str, int, dict[str, Any]]]:
    """Return (event, number within the event, payload) of every recorded payload."""
    index = json.loads(
        (_get_folder("@octokit/webhooks-examples") / "api.github.com/index.json").read_text()
    )
    return [
        (event["name"], number, body)
        for event in index
        for number, body in enumerate(event["examples"], 1)
    ]
