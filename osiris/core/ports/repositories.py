"""Ports to the repositories on the host, and to the storage of checkpoints."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from osiris.core.ports.sandbox import MIB, Export
from osiris.core.work import FileChange

MOST_FILES = 3_000
MOST_FILE_SIZE = 20 * MIB
MOST_PACK_SIZE = 64 * MIB
"""Limits of the work of one run: changed files, bytes of each, and bytes of all together as git
packs them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkout:
    """The commit that work starts from, of a repository that this machine has a mirror of.

    `trusted` is the head of the default branch: it holds only what people merged.
    """

    commit: str
    trusted: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedWork:
    """Work that was imported and checked: a tree in the host repository, and its changes.

    `size` is how many bytes it added to that repository.
    """

    tree: str
    files: tuple[FileChange, ...]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Instructions:
    """A repository's own instructions for agents: path -> text, those nearest the root first;
    `left_out` says in sentences what is cut or missing."""

    texts: Mapping[str, str]
    left_out: tuple[str, ...] = ()


class Repositories(Protocol):
    """The host repositories. No sandbox sees them, and they hold no credential."""

    async def import_pack(
        self, repo: str, base: str, export: Export, deny: Sequence[str]
    ) -> ImportedWork:
        """Import an untrusted pack and check it against the policy. Raises Refused with a sentence
        for people."""

    async def read_instructions(self, repo: str, commit: str) -> Instructions:
        """Return the repository's own instructions for agents at `commit`, bounded. A link within
        the repository is followed."""

    async def read_file(self, repo: str, commit: str, path: str) -> str:
        """Return the text of a file at `commit`, bounded; "" when there is none. Raises Refused
        when it cannot be read."""

    async def fingerprint_packages(self, repo: str, commit: str) -> str:
        """Return a digest that changes with the packages a repository needs: of its lock files and
        the like, else of all its files."""


class CheckpointStorage(Protocol):
    """Storage of checkpoints, from which another worker can restore them. No agent can reach it."""

    async def save(self, repo: str, run: str, tree: str, base: str, before: str) -> str:
        """Save a tree of the host repository after the checkpoint `before` ("" for the first one).

        Returns its commit. Raises LeaseLost when another worker saved one meanwhile; Refused;
        Unavailable.
        """

    async def restore(self, repo: str, run: str) -> None:
        """Fetch a run's checkpoint to this machine. Raises Refused when there is none;
        Unavailable."""

    async def delete(self, repo: str, runs: Collection[str]) -> None:
        """Delete the checkpoints of some runs, if they exist. Raises Refused; Unavailable."""
