"""The folders of local work: one for each request, below one for each repository."""

import contextlib
import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from osiris.core.errors import Refused
from osiris.data_folder import make_passable
from osiris.tools.sandbox.disks.mounts import unmount_below

REQUEST = "request.json"
_DONE = "done"


@dataclass(frozen=True, slots=True)
class WorkDirectories:
    """The folders of one repository.

    A finished one is kept until the next request, so that its history can be read.
    """

    root: Path

    @classmethod
    def for_repository(cls, data: Path, repository: Path) -> "WorkDirectories":
        key = hashlib.sha256(str(repository).encode()).hexdigest()[:8]
        return cls(data / "local" / f"{repository.name}-{key}")

    def create_directory(self) -> Path:
        """Create a new folder and remove the finished ones.

        Raises Refused when that is not possible.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, self.root.parent, self.root.parent.parent):
                make_passable(folder)
            numbers = [int(folder.name) for folder in self._list_directories()]
            for folder in self._list_directories():
                if (folder / _DONE).exists():
                    unmount_below(folder)  # a process that was killed left something mounted
                    shutil.rmtree(folder, ignore_errors=True)
            directory = self.root / str(max(numbers, default=0) + 1)
            directory.mkdir(mode=0o711)
        except FileExistsError:
            return self.create_directory()  # another process was faster
        except OSError as error:
            raise Refused(
                f"{self.root} cannot be used: {error.strerror}; set OSIRIS_DATA_DIR"
            ) from None
        return directory

    def find_unfinished(self) -> Path:
        """Return the newest folder with unfinished work. Raises Refused when there is none."""
        for folder in self._list_directories():
            if not (folder / _DONE).exists() and (folder / REQUEST).exists():
                return folder
        raise Refused(
            'there is no unfinished work here; describe what to do: osiris local PATH "request"'
        )

    @staticmethod
    def mark_finished(directory: Path) -> None:
        (directory / _DONE).touch()

    @staticmethod
    @contextlib.contextmanager
    def lock_directory(directory: Path) -> Iterator[None]:
        """Lock the folder until the block ends.

        Raises Refused when another terminal works in it.
        """
        with (directory / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(
                    "this work is open in another terminal; continue there, or end it first"
                ) from None
            yield

    def _list_directories(self) -> list[Path]:
        folders = [folder for folder in self.root.glob("*") if folder.name.isdigit()]
        return sorted(folders, key=lambda folder: -int(folder.name))
