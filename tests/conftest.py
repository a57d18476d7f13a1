"""What every test may use."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that the sandbox's own user can reach too (pytest's tmp_path is closed to it)."""
    path = Path(tempfile.mkdtemp(prefix="osiris-test-"))
    path.chmod(0o711)
    yield path
    os.system(f"rm -rf {path}") if os.geteuid() else shutil.rmtree(path, ignore_errors=True)
