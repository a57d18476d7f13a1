"""The downloads: a published source release, and a toolchain that runs its tests."""

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from uv import find_uv_bin

from osiris.core.errors import Refused

REALBUG_FOLDER = Path(__file__).parent
CACHE_FOLDER = REALBUG_FOLDER.parent / "build/real"
PYTHON = "/usr/bin/python3"  # the Python that jails use
_PACKAGING_FILES = ("PKG-INFO", "tenacity.egg-info/")


def load_release() -> dict[str, bytes]:
    """Return the files of tenacity 9.1.2 as its authors wrote them, by path. Raise Refused if the
    download fails."""
    archive = CACHE_FOLDER / "tenacity-9.1.2.tar.gz"
    if not archive.exists():
        _download(archive)
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.isfile()]
        contents = {
            member.name.partition("/")[2]: tar.extractfile(member).read() for member in members
        }  # type: ignore[union-attr]
    return {
        path: content for path, content in contents.items() if not path.startswith(_PACKAGING_FILES)
    }


def _download(archive: Path) -> None:
    """Download the archive. pip checks its hash, and only a complete archive is moved into the
    cache."""
    CACHE_FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE_FOLDER) as folder:
        flags = (
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--no-binary=tenacity",
            "--require-hashes",
        )
        requirement_options = (
            "--dest",
            folder,
            "--requirement",
            str(REALBUG_FOLDER / "release.txt"),
        )
        _run(
            [sys.executable, "-m", "pip", "download", *flags, *requirement_options],
            "tenacity 9.1.2 could not be downloaded",
        )
        shutil.move(Path(folder) / archive.name, archive)


def create_toolchain(folder: Path) -> Path:
    """Create a virtual environment in `folder` with what tenacity's tests import, made with the
    Python that jails use."""
    uv = find_uv_bin()
    error = "the tests' toolchain could not be made"
    _run(
        [uv, "venv", "--quiet", "--no-project", "--no-config", "--python", PYTHON, str(folder)],
        error,
    )
    flags = ("--quiet", "--no-config", "--link-mode=copy", "--require-hashes")
    _run(
        [
            uv,
            "pip",
            "install",
            *flags,
            "--python",
            str(folder),
            "-r",
            str(REALBUG_FOLDER / "toolchain.txt"),
        ],
        error,
    )
    return folder


def _run(argv: Sequence[str], error: str) -> None:
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = (result.stderr.strip() or result.stdout.strip()).splitlines()
        raise Refused(
            f"{error}: {lines[-1].removeprefix('ERROR: ')[:300] if lines else 'no reason given'}"
        )
