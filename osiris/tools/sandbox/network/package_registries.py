"""The package registries that this machine's own package tools use. The tools are asked, so that
mirrors work.

The configuration of this machine (`pip config`, `.npmrc`, `go env`, cargo's `config.toml`) is valid
inside sandboxes too, except for passwords: an address that contains one is left out, because no
secret may enter a sandbox.
"""

import json
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from osiris.tools.sandbox.network.addresses import AllowedHost

log = logging.getLogger(__name__)

PATIENCE: Final = 20.0  # seconds that one tool may take to answer
PIP_SETTING: Final = re.compile(r"(:env:|[a-z]+)\.([a-z-]+)='(.*)'")
PIP_DEFAULTS: Final = (
    "from pip._internal.models.index import PyPI; print(PyPI.simple_url, PyPI.file_storage_domain)"
)
# a proxy that does not exist: cargo then reports the address that it could not fetch
NO_PROXY: Final = "http://127.0.0.1:9"
CARGO_PROJECT: Final = """[package]
name = "asks"
version = "0.0.0"
[lib]
path = "a.rs"
[dependencies]
itoa = "1"
"""
CARGO_INDEX: Final = re.compile(r"`(https?://\S+?)/?config\.json`")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageRegistries:
    """The hosts that the tools need, and the environment and the configuration file of cargo that
    name them."""

    allowed: tuple[AllowedHost, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    cargo: str = ""


def detect_registries(path: str, environment: Mapping[str, str]) -> PackageRegistries:
    """Ask each tool on `path`, with the operator's `environment`; takes some seconds."""
    found = [
        _detect_pip(path, environment),
        _detect_npm(path, environment),
        _detect_go(path, environment),
        _detect_cargo(path, environment),
    ]
    return PackageRegistries(
        allowed=tuple(dict.fromkeys(rule for one in found for rule in one.allowed)),
        environment={
            name: value for one in found for name, value in one.environment.items() if value
        },
        cargo="".join(one.cargo for one in found),
    )


def _detect_pip(path: str, environment: Mapping[str, str]) -> PackageRegistries:
    pythons = ("python3", sys.executable)
    python = next(
        (
            python
            for python in pythons
            if _run_tool([python, "-m", "pip", "--version"], path, environment)
        ),
        None,
    )
    if python is None:
        return PackageRegistries()
    listed = _run_tool([python, "-m", "pip", "config", "list"], path, environment)
    simple, _, files = (
        _run_tool([python, "-I", "-c", PIP_DEFAULTS], path, {}).strip().partition(" ")
    )
    settings = dict(_parse_pip_settings(listed))
    first = _select_usable([settings.get("index-url") or simple])
    more = _select_usable(settings.get("extra-index-url", "").split())
    return PackageRegistries(
        allowed=tuple(
            map(_build_allowed_host, [*first, *more, *([f"https://{files}"] if files else [])])
        ),
        environment={"PIP_INDEX_URL": " ".join(first), "PIP_EXTRA_INDEX_URL": " ".join(more)},
    )


def _parse_pip_settings(listed: str) -> Iterator[tuple[str, str]]:
    """Yield (name, value) pairs, the ones that override others last: the file, its `install`
    section, the environment."""
    rows = [
        found.groups() for line in listed.splitlines() if (found := PIP_SETTING.fullmatch(line))
    ]
    for section in ("global", "install", ":env:"):
        yield from (
            (name, value.replace("\\n", " ")) for where, name, value in rows if where == section
        )


def _detect_npm(path: str, environment: Mapping[str, str]) -> PackageRegistries:
    settings = _parse_object(_run_tool(["npm", "config", "list", "--json"], path, environment))
    names = [name for name in settings if name == "registry" or name.endswith(":registry")]
    urls = {name: url for name in names for url in _select_usable([str(settings[name])])}
    return PackageRegistries(
        allowed=tuple(map(_build_allowed_host, urls.values())),
        environment={f"npm_config_{name}": url for name, url in urls.items()},
    )


def _detect_go(path: str, environment: Mapping[str, str]) -> PackageRegistries:
    settings = _parse_object(
        _run_tool(["go", "env", "-json", "GOPROXY", "GOSUMDB"], path, environment)
    )
    proxies = _select_usable(re.split(r"[,|]", str(settings.get("GOPROXY", ""))))
    sums = str(settings.get("GOSUMDB", ""))
    place = sums.split(" ")[-1].partition("+")[0]
    checked = [place if "://" in place else f"https://{place}"] if place not in ("", "off") else []
    return PackageRegistries(
        allowed=tuple(map(_build_allowed_host, [*proxies, *_select_usable(checked)])),
        environment={"GOPROXY": ",".join(proxies), "GOSUMDB": sums} if proxies else {},
    )


def _detect_cargo(path: str, environment: Mapping[str, str]) -> PackageRegistries:
    """Detect the registry of cargo, which reports it only when it cannot fetch from it."""
    with tempfile.TemporaryDirectory() as project:
        (Path(project) / "Cargo.toml").write_text(CARGO_PROJECT)
        (Path(project) / "a.rs").touch()
        asked = {**environment, "CARGO_HTTP_PROXY": NO_PROXY, "CARGO_NET_RETRY": "0"}
        found = CARGO_INDEX.search(_run_tool(["cargo", "fetch"], path, asked, cwd=project))
    if not found or not (index := _select_usable([found[1]])):
        return PackageRegistries()
    files = str(_parse_object(_fetch_text(f"{index[0]}/config.json")).get("dl", ""))
    source = '[source.crates-io]\nreplace-with = "here"\n[source.here]\nregistry = "sparse+{}/"\n'
    return PackageRegistries(
        allowed=tuple(map(_build_allowed_host, [*index, *_select_usable([files])])),
        cargo=source.format(index[0]),
    )


# ── running the tools ────────────────────────────────────────────────────────────────────────────


def _run_tool(
    words: Sequence[str], path: str, environment: Mapping[str, str], cwd: str = "/"
) -> str:
    """Return the output of a tool; empty when it is missing or does not answer."""
    if (program := shutil.which(words[0], path=path)) is None:
        return ""
    try:
        done = subprocess.run(
            [program, *words[1:]],
            env={**environment, "PATH": path},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("%s does not report its package registry: %s", words[0], error)
        return ""
    return done.stdout


def _parse_object(text: str) -> dict[str, Any]:
    """Return the JSON object in a tool's output, without the warnings before it."""
    try:
        found = json.loads(text[text.index("{") :])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _fetch_text(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310  (http and https: see _select_usable)
            return str(answer.read(1 << 16).decode("utf-8", "replace"))
    except (OSError, ValueError) as error:
        log.warning("%s cannot be reached, so cargo packages are not available: %s", url, error)
        return ""


def _select_usable(urls: Iterable[str]) -> list[str]:
    """Return the HTTP addresses that contain no password."""
    found = []
    for url in urls:
        parts = urlsplit(url.strip())
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or not _has_valid_port(parts)
        ):
            continue
        if "@" in parts.netloc:
            log.warning(
                "the registry at %s needs a password, and none goes into a sandbox: it is left out",
                parts.hostname,
            )
            continue
        found.append(url.strip().rstrip("/"))
    return found


def _has_valid_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


def _build_allowed_host(url: str) -> AllowedHost:
    parts = urlsplit(url)
    plain = parts.scheme == "http"
    return AllowedHost(
        host=(parts.hostname or "").lower(),
        port=parts.port or (80 if plain else 443),
        own=True,
        plain=plain,
    )
