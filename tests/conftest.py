"""What every test may use."""

import subprocess
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
    for line in Path("/proc/self/mounts").read_text().splitlines():
        if (mounted := line.split()[1]).startswith(f"{path}/"):  # a workspace that a test left under way
            subprocess.run(["umount", "-l", mounted], check=True)
    subprocess.run(["chmod", "-R", "u+rwX", path], check=False, capture_output=True)
    subprocess.run(["rm", "-rf", "--one-file-system", path], check=True)
