"""What the story needs from outside: a published source release, and a toolchain to run its tests
with."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from uv import find_uv_bin

from osiris.core.errors import Refused

HERE = Path(__file__).parent
CACHE = HERE.parent / "build/real"
PYTHON = "/usr/bin/python3"  # the one that jails see
_MADE_BY_PACKAGING = ("PKG-INFO", "tenacity.egg-info/")


def release() -> dict[str, bytes]:
    """The files of tenacity 9.1.2 as its authors wrote them, by path. Raises Refused when it cannot
    be had."""
    archive = CACHE / "tenacity-9.1.2.tar.gz"
    if not archive.exists():
        _download(archive)
    with tarfile.open(archive) as opened:
        members = [member for member in opened if member.isfile()]
        found = {
            member.name.partition("/")[2]: opened.extractfile(member).read() for member in members
        }  # type: ignore[union-attr]
    return {
        path: content for path, content in found.items() if not path.startswith(_MADE_BY_PACKAGING)
    }


def _download(archive: Path) -> None:
    """pip holds the archive against its hash; only what was whole gets its name in the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        flags = (
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-binary=tenacity",
            "--require-hashes",
        )
        wanted = ("--dest", folder, "--requirement", str(HERE / "release.txt"))
        _run(
            [sys.executable, "-m", "pip", "download", *flags, *wanted],
            "tenacity 9.1.2 could not be downloaded",
        )
        shutil.move(Path(folder) / archive.name, archive)


def toolchain(place: Path) -> Path:
    """A virtual environment with what tenacity's tests import, at `place`, made with the python
    that jails see."""
    uv = find_uv_bin()
    told = "the tests' toolchain could not be made"
    _run(
        [uv, "venv", "--quiet", "--no-project", "--no-config", "--python", PYTHON, str(place)], told
    )
    flags = ("--quiet", "--no-config", "--link-mode=copy", "--require-hashes")
    _run(
        [uv, "pip", "install", *flags, "--python", str(place), "-r", str(HERE / "toolchain.txt")],
        told,
    )
    return place


def _run(argv: Sequence[str], told: str) -> None:
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
        raise Refused(
            f"{told}: {lines[-1].removeprefix('ERROR: ')[:300] if lines else 'it does not say why'}"
        )
