"""Bare git repositories on disk: creating, importing, resolving, comparing, and merging without a
work tree.

The short plumbing commands run synchronously, so that each change to the hub's world is atomic.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from osiris.core.errors import Refused
from osiris.core.git_environment import HARDENED

EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
SETTINGS = {
    "receive.autogc": "false",
    "receive.denyDeleteCurrent": "ignore",
    "receive.hideRefs": "refs/pull",  # clients may fetch these, only the hub writes them
    "uploadpack.allowFilter": "true",
    "uploadpack.allowAnySHA1InWant": "true",
    "receive.denyNonFastForwards": "false",
    "core.sharedRepository": "0644",
    "core.quotePath": "false",
}


_SERVE = "--upload-pack=git -c 'safe.directory=*' -c uploadpack.allowAnySHA1InWant=true upload-pack"
"""The option to fetch from a repository of this machine: any commit, whoever owns the files."""


class GitRepositoryError(Refused):
    """The error of a failed git command; the text is git's message."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    name: str
    email: str


@dataclass(frozen=True, kw_only=True)
class Commit:
    sha: str
    tree: str
    parents: tuple[str, ...]
    author: Signature
    authored: str
    committer: Signature
    committed: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """One changed path; `patch` is None when the content is not text."""

    path: str
    old_path: str
    status: Literal["added", "removed", "modified", "renamed", "changed"]
    blob: str
    additions: int
    deletions: int
    patch: str | None


OF_COMMITS = ("diff", "merge-base", "merge-tree", "rev-list")
IDS = re.compile(r"-.*|[0-9a-f]{40}(?:\.\.[0-9a-f]{40})?")
MOST_KNOWN = 500


def _is_immutable(args: Sequence[str]) -> bool:
    return args[0] in OF_COMMITS and all(IDS.fullmatch(word) for word in args[1:])


def build_environment() -> dict[str, str]:
    """Return an environment in which git reads no settings of this machine's user."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", **HARDENED}


class GitRepository:
    """One bare repository."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[tuple[str, ...], tuple[int, bytes, bytes]] = {}

    def run(self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None) -> bytes:
        code, out, err = self._run_cached(*args, stdin=stdin, env=env)
        if code:
            raise GitRepositoryError(
                err.decode(errors="replace").strip() or f"git {args[0]} ended with {code}"
            )
        return out

    def _run_cached(
        self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, bytes]:
        """Run git and return (exit code, stdout, stderr). Answers about commits by their ids never
        change, so they are cached."""
        if not _is_immutable(args):
            return self._run_uncached(*args, stdin=stdin, env=env)
        if args not in self._known:
            answer = self._run_uncached(*args)
            if answer[0] not in (0, 1):
                return answer
            self._known |= {args: answer}
            if len(self._known) > MOST_KNOWN:
                self._known.pop(next(iter(self._known)))
        return self._known[args]

    def _run_uncached(
        self, *args: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, bytes]:
        command = ["git", f"--git-dir={self.path}", *args]
        done = subprocess.run(
            command,
            input=stdin,
            env=build_environment() | dict(env or {}),
            capture_output=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def _read_line(self, *args: str) -> str:
        return self.run(*args).decode().strip()

    # ── creating ──

    def init_with_files(self, files: Mapping[str, bytes | str], who: Signature, at: float) -> None:
        """Create a repository with one commit on `main`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.run(
            "init", "--quiet", "--bare", "--shared=0644", "--initial-branch=main", str(self.path)
        )
        self._write_config()
        tree = self._write_tree(files)
        commit = self.commit_tree(tree, (), "Initial commit\n", who, at)
        self.update_ref("refs/heads/main", commit)

    def _write_tree(self, files: Mapping[str, bytes | str]) -> str:
        with tempfile.TemporaryDirectory() as folder:
            index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
            lines = [self._write_blob(path, content) for path, content in files.items()]
            self.run("update-index", "-z", "--index-info", stdin=b"".join(lines), env=index)
            return self.run("write-tree", env=index).decode().strip()

    def _write_blob(self, path: str, content: bytes | str) -> bytes:
        data = content.encode() if isinstance(content, str) else content
        blob = self.run("hash-object", "-w", "--stdin", stdin=data).decode().strip()
        mode = "100755" if data.startswith(b"#!") else "100644"
        return f"{mode} {blob}\t{path}".encode("utf-8", "surrogateescape") + b"\0"

    def import_commit(self, source: Path, commit: str = "HEAD") -> None:
        """Create a repository with a commit of another one, with its whole history, as the branch
        `main`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.run(
            "init", "--quiet", "--bare", "--shared=0644", "--initial-branch=main", str(self.path)
        )
        self._write_config()
        try:
            self.run(
                "fetch",
                "--quiet",
                "--no-tags",
                _SERVE,
                "--",
                str(source),
                f"+{commit}:refs/heads/main",
            )
        except GitRepositoryError as error:
            said = str(error).splitlines()[0].removeprefix("fatal: ")
            raise Refused(
                f"{source} cannot be copied; is a commit checked out there? git says: {said}"
            ) from None

    def _write_config(self) -> None:
        with (self.path / "config").open("a") as config:
            for name, value in SETTINGS.items():
                section, _, key = name.partition(".")
                config.write(f"[{section}]\n\t{key} = {value}\n")
        self.path.chmod(0o755)

    # ── reading ──

    def resolve_commit(self, name: str) -> str | None:
        """Return the commit of a branch, tag or (short) object name; None when there is none."""
        code, out, _ = self._run_cached(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"
        )
        return out.decode().strip() if code == 0 else None

    def read_head_branch(self) -> str:
        return self._read_line("symbolic-ref", "--short", "HEAD")

    def list_heads(self) -> dict[str, str]:
        lines = self._read_line(
            "for-each-ref", "--format=%(objectname) %(refname:lstrip=2)", "refs/heads"
        ).splitlines()
        return {name: sha for sha, name in (line.split(" ", 1) for line in lines)}

    def read_commit(self, sha: str) -> Commit:
        return self._log_commits("--max-count=1", sha)[0]

    def list_commits(self, base: str, head: str, limit: int = 250) -> list[Commit]:
        """Return the commits of `head` that are not in `base`, oldest first."""
        return self._log_commits("--reverse", f"--max-count={limit}", f"{base}..{head}")

    def list_history(self, head: str, limit: int = 250) -> list[Commit]:
        """Return the history of `head`, newest first."""
        return self._log_commits(f"--max-count={limit}", head)

    def count_commits(self, base: str, head: str) -> int:
        return int(self._read_line("rev-list", "--count", f"{base}..{head}"))

    def _log_commits(self, *args: str) -> list[Commit]:
        form = "%H%x00%T%x00%P%x00%an%x00%ae%x00%aI%x00%cn%x00%ce%x00%cI%x00%B%x00%x01"
        text = self.run("log", f"--format={form}", *args).decode(errors="replace")
        return [
            _parse_commit(record.lstrip("\n"))
            for record in text.split("\x00\x01")
            if record.strip()
        ]

    def read_file(self, commit: str, path: str) -> bytes | None:
        """Return a file's bytes, or None when there is no such file."""
        code, out, _ = self._run_cached("cat-file", "blob", f"{commit}:{path}")
        return out if code == 0 else None

    def list_folder(self, commit: str, path: str) -> list[tuple[str, str, str, int]]:
        """Return the entries of a folder: (type, object, name, size)."""
        code, out, _ = self._run_cached(
            "ls-tree", "-z", "--long", f"{commit}:{path}" if path else commit
        )
        rows = [row.split("\t", 1) for row in out.decode(errors="replace").split("\0") if row]
        facts = [(head.split(), name) for head, name in rows] if code == 0 else []
        return [
            (kind, sha, name, int(size) if size.isdigit() else 0)
            for (_, kind, sha, size), name in facts
        ]

    def read_blob_id(self, commit: str, path: str) -> str:
        return self._read_line("rev-parse", f"{commit}:{path}")

    def find_merge_base(self, one: str, other: str) -> str | None:
        code, out, _ = self._run_cached("merge-base", one, other)
        return out.decode().strip() if code == 0 else None

    def is_ancestor(self, old: str, new: str) -> bool:
        return self._run_cached("merge-base", "--is-ancestor", old, new)[0] == 0

    def list_changes(self, old: str, new: str) -> list[Change]:
        """Return the changes between two commits, with the text of each."""
        options = ("--no-ext-diff", "--no-textconv", "--no-color", "--find-renames", "--full-index")
        raw = self.run("diff", "--raw", "-z", "--abbrev=40", *options, old, new)
        text = self.run("diff", *options, old, new)
        return _parse_changes(raw, text)

    def diff_path(self, old: str, new: str, path: str) -> str:
        """Return the hunks, without context, of one path between two commits."""
        out = self.run(
            "diff", "--no-ext-diff", "--no-color", "-U0", old, new, "--", f":(literal){path}"
        )
        return _extract_hunks(out)

    # ── writing ──

    def commit_tree(
        self, tree: str, parents: Sequence[str], message: str, who: Signature, at: float
    ) -> str:
        when = f"{int(at)} +0000"
        env = {
            "GIT_AUTHOR_NAME": who.name,
            "GIT_AUTHOR_EMAIL": who.email,
            "GIT_AUTHOR_DATE": when,
            "GIT_COMMITTER_NAME": who.name,
            "GIT_COMMITTER_EMAIL": who.email,
            "GIT_COMMITTER_DATE": when,
        }
        args = [part for parent in parents for part in ("-p", parent)]
        return (
            self.run("commit-tree", tree, *args, stdin=message.encode(), env=env).decode().strip()
        )

    def merge_tree(self, ours: str, theirs: str) -> str | None:
        """Return the tree of a clean merge, or None when the two conflict."""
        code, out, err = self._run_cached(
            "merge-tree", "--write-tree", "--allow-unrelated-histories", ours, theirs
        )
        if code not in (0, 1):
            raise GitRepositoryError(err.decode(errors="replace").strip())
        return out.decode().split("\n", 1)[0] if code == 0 else None

    def update_ref(self, ref: str, new: str, old: str = "") -> None:
        self.run("update-ref", ref, new, *([old] if old else []))


def _parse_commit(record: str) -> Commit:
    sha, tree, parents, name, email, authored, cname, cemail, committed, message = record.split(
        "\x00", 9
    )
    return Commit(
        sha=sha,
        tree=tree,
        parents=tuple(parents.split()),
        author=Signature(name=name, email=email),
        authored=authored,
        committer=Signature(name=cname, email=cemail),
        committed=committed,
        message=message.rstrip("\n"),
    )


def _parse_changes(raw: bytes, text: bytes) -> list[Change]:
    fields = iter(raw.split(b"\0"))
    patches = iter(_split_patches(text))
    found = []
    for facts in fields:
        if not facts:
            break
        blob = facts.split(b" ")[3].decode()
        letter = chr(facts.split(b" ")[4][0])
        old = new = next(fields)
        if letter in "RC":
            new = next(fields)
        patch = next(patches)
        if letter == "T":  # git shows a changed file type as a removal and an addition
            patch += b"\n" + next(patches)
        found.append(_build_change(letter, blob, old, new, patch))
    return found


def _build_change(letter: str, blob: str, old: bytes, new: bytes, patch: bytes) -> Change:
    statuses: dict[str, Literal["added", "removed", "renamed", "changed"]]
    statuses = {"A": "added", "D": "removed", "R": "renamed", "T": "changed"}
    hunks = _extract_hunks(patch)
    lines = hunks.split("\n")
    return Change(
        path=new.decode(errors="replace"),
        old_path=old.decode(errors="replace"),
        status=statuses.get(letter, "modified"),
        blob=blob,
        additions=sum(line.startswith("+") for line in lines),
        deletions=sum(line.startswith("-") for line in lines),
        patch=hunks or None,
    )


def _split_patches(text: bytes) -> list[bytes]:
    """Return one patch per file. Only a header line can begin with these words, because every line
    of content begins with a sign."""
    return (b"\n" + text).split(b"\ndiff --git ")[1:]


def _extract_hunks(patch: bytes) -> str:
    at = patch.find(b"\n@@ ")
    return patch[at + 1 :].decode(errors="replace").removesuffix("\n") if at >= 0 else ""
