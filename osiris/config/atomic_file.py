"""Atomic file writes: a file has its old content or its new content, never a part of it."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replace_file(path: Path, *, mode: int = 0o600) -> Iterator[IO[bytes]]:
    """Open a new file that takes the place of `path` when the block ends without an error.

    Its content is on the disk before that, which may take seconds, so an event loop calls this in a
    thread. `mode` is the file's, whatever the umask. Raises OSError when it cannot be written;
    `path` is then unchanged.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_atomically(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Write `text` (UTF-8) to `path`; see `replace_file`."""
    with replace_file(path, mode=mode) as file:
        file.write(text.encode())
