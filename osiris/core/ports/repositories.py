"""The host's own repositories, and where the files of a run are saved."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from osiris.core.ports.sandbox import Export
from osiris.core.work import FileChange


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """Where work starts: a commit of a repository that this machine has a mirror of.

    `trusted` is the end of the default branch: what people merged, and no agent wrote alone.
    """

    commit: str
    trusted: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedWork:
    """Work the host took over and checked: a tree in the host's own repository, and what it
    changes.

    `size` is how many bytes it added to that repository.
    """

    tree: str
    files: tuple[FileChange, ...]
    size: int


class Repositories(Protocol):
    """The host's own repositories, which no sandbox sees; it holds no credential."""

    async def import_pack(
        self, repo: str, base: str, export: Export, deny: Sequence[str]
    ) -> ImportedWork:
        """Import a stranger's pack and hold it against policy. Raises Refused with the sentence for
        the person."""

    async def read_instructions(self, repo: str, commit: str) -> Mapping[str, str]:
        """The repository's own instructions for agents at `commit`: path -> text, capped.

        What was cut or left out is said in a text.
        """

    async def read_file(self, repo: str, commit: str, path: str) -> str:
        """The text of a file at `commit`, capped; "" when there is none. Raises Refused when it
        cannot be read."""

    async def fingerprint_packages(self, repo: str, commit: str) -> str:
        """What changes with the packages that a repository needs: its lock files and the like, or
        else all of it."""


class CheckpointStorage(Protocol):
    """Where the files of a run are put away, so that another machine can go on with it. It is no
    place of the agent."""

    async def save(self, repo: str, run: str, tree: str, base: str, before: str) -> str:
        """Put a tree of the host's own repository away, after what was put away `before` ("":
        nothing yet).

        Returns its commit. Raises LeaseLost when another worker put something away since; Refused,
        and Unavailable.
        """

    async def restore(self, repo: str, run: str) -> None:
        """Bring what was put away to this machine. Raises Refused when it is not there, and
        Unavailable."""

    async def delete(self, repo: str, runs: Collection[str]) -> None:
        """Throw away what was put away for some runs; fine when there is nothing. Raises Refused or
        Unavailable."""
