"""Two hosts that import an agent's work: one as Osiris does it, and one that trusts the agent's
repository."""

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from osiris.bot.git.remote import RemoteRepositories
from osiris.bot.git.repositories import HostRepositories
from osiris.bot.git.runner import GitCommandFailed, GitLimits, run_git
from osiris.core.errors import Refused, Unavailable
from osiris.core.policy import Policy
from osiris.core.ports.repositories import ImportedWork
from osiris.core.ports.sandbox import Export
from tests.attacks.conftest import WorkerUnderAttack
from tests.attacks.hostile_repositories import Harm, Plant

REPO = "acme/shop"
WHOLE_OUTPUT = GitLimits(output=64 << 20)
PRIVATE = "what-another-repository-holds\n"
Tree = Mapping[str, tuple[str, str]]
"""path -> (mode, content)."""


class AttackerServer:
    """A server of the attackers; `received` holds what was sent to it."""

    def __init__(self) -> None:
        self.received = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                with self._listener.accept()[0] as caller:
                    caller.settimeout(1)
                    self.received += caller.recv(4096)
                    caller.sendall(
                        b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )


# ── a naive host ──────────────────────────────────────────────────────────────────────────────────

PRELUDE = """
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@x GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@x GIT_TERMINAL_PROMPT=0
program() { printf '#!/bin/sh\\ntouch "%s"\\nexec cat\\n' "$M" >"$1"; chmod +x "$1"; }
"""
MAKE_TEMPLATE = """
set -e
export GIT_TEMPLATE_DIR=
git config --file safe safe.directory '*'
export GIT_CONFIG_GLOBAL=$PWD/safe
mkdir -p template/outside; cd template
echo "$OSIRIS_CANARY" >outside/secret
git init -q -b main other; printf %s "$PRIVATE" >other/private.txt
git -C other add -A; git -C other commit -qm private
git clone -q --bare "$REPO" origin.git
git clone -q origin.git work; cd work
git checkout -q -b side; echo aside >>README.md; git commit -qam side; git push -q origin side
git checkout -q -b work main; git branch -qD side; echo $PWD
"""
PUBLISH_NAIVELY = """
cp -a template "$NAME"; cd "$NAME/work"
M=$PWD/../marker OUT=$(realpath ../outside) OTHER=$(realpath ../other) ORIGIN=$(realpath ../origin.git)
export M OUT OTHER ORIGIN
git config remote.origin.url "$ORIGIN"
( eval "$PLANT" ) >/dev/null 2>&1
rm -f "$M"
timeout "$TIMEOUT" bash -c "$HOST" 2>&1 || [ $? != 124 ] || echo "it hung"
"""
WORK = "echo change >>README.md; mkdir -p src; echo new >src/new.txt\n"


class NaiveHost:
    """A host that runs git in the agent's repository, as the worker's user. `template` is a folder
    with that repository and with the targets of plants: a secret, and another repository."""

    def __init__(self, worker: WorkerUnderAttack, attacker: AttackerServer) -> None:
        self._worker = worker
        self._attacker = attacker
        output = worker.run_unprotected(
            _export_variables(PRELUDE + MAKE_TEMPLATE, REPO=worker.repo, PRIVATE=PRIVATE)
        )
        self.template = Path(output.strip()).parent
        assert self.template.is_dir(), output

    async def find_harms(self, name: str, plant: Plant, script_env: Mapping[str, str]) -> set[Harm]:
        """Publish the work of an agent that left a plant, and return the harms that were done."""
        received = self._attacker.received
        timeout_seconds = "0.5" if plant.harm is Harm.HANGS_GIT else "20"
        variables = {
            **script_env,
            "NAME": name,
            "PLANT": WORK + plant.script,
            "HOST": plant.host_script,
            "TIMEOUT": timeout_seconds,
        }
        output = self._worker.run_unprotected(
            _export_variables(PRELUDE + PUBLISH_NAIVELY, **variables)
        )
        folder = self.template.with_name(name)
        pushed = await read_tree(folder / "origin.git", "refs/heads/bot") or {}
        was_diverted = (
            folder / "work/.git/evil/refs/heads/bot"
        ).exists() or self._attacker.received != received
        has_bad_entry = bool(plant.bad_entry) and any(plant.bad_entry in path for path in pushed)
        has_work = any("change\n" in content for _mode, content in pushed.values())
        harms = {
            Harm.RUNS_COMMAND: (folder / "marker").exists(),
            Harm.LEAKS_SECRET: contains_secret(pushed, self._worker.canary),
            Harm.WRITES_ELSEWHERE: read_files(folder / "other")
            != read_files(self.template / "other"),
            Harm.DIVERTS_PUSH: was_diverted,
            Harm.HIDES_CHANGE: plant.visible_text not in output,
            Harm.PUSHES_BAD_ENTRY: has_bad_entry,
            Harm.LOSES_WORK: not has_work,
            Harm.HANGS_GIT: output.endswith("it hung\n"),
        }
        return {harm for harm, was_done in harms.items() if was_done}


def _export_variables(script: str, **variables: object) -> str:
    """Return a script with these environment variables."""
    lines = [f"export {name}={_shell_quote(str(value))}" for name, value in variables.items()]
    return "\n".join([*lines, script])


def _shell_quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def build_plant_script(plant: Plant, script_env: Mapping[str, str]) -> str:
    """Return the script that the agent runs in its sandbox."""
    return _export_variables(PRELUDE + WORK + plant.script, **script_env)


# ── a host like Osiris ────────────────────────────────────────────────────────────────────────────


class _FakeAppAuth:
    async def mint_token(self, repo: str, **rights: str) -> str:
        return "token"


async def _no_pause() -> None:
    pass


@dataclass(frozen=True)
class HardenedHost:
    """Osiris' own host repositories and remote repositories. They push to the repository
    `origin`."""

    repositories: HostRepositories
    remotes: RemoteRepositories
    origin: Path

    @classmethod
    async def create(cls, folder: Path, repo: Path) -> "HardenedHost":
        """Create a host below `folder` for the repository `repo`."""
        origin = folder / "origins" / f"{REPO}.git"
        repositories = HostRepositories(folder / "git")
        await repositories.prepare_repository(REPO)
        for target in (origin, repositories.mirror_path(REPO)):
            target.mkdir(parents=True, exist_ok=True)
            await run_git(target, "init", "-q", "--bare")
            await run_git(
                repo,
                "push",
                "-q",
                str(target),
                "HEAD:refs/heads/main",
                config={"protocol.file.allow": "always"},
            )
        return cls(
            repositories,
            RemoteRepositories(repositories, _FakeAppAuth(), f"file://{folder}/origins", _no_pause),
            origin,
        )

    @property
    def address(self) -> str:
        return f"file://{self.origin}"

    async def publish_work(
        self, worker: WorkerUnderAttack, branch: str
    ) -> ImportedWork | Refused | Unavailable:
        """Import the work of session "s", commit it and push it to a branch. Return the imported
        work, or the error."""
        file = worker.folder / "own" / "pack"
        try:
            tree = worker.call("export_work", "s", worker.base, str(file))
            with file.open("rb") as pack:
                imported = await self.repositories.import_pack(
                    REPO, worker.base, Export(tree=tree, pack=pack), Policy().deny
                )
        except (Refused, Unavailable) as error:
            return error
        commit = await self.repositories.commit_tree(
            REPO,
            tree=imported.tree,
            base=worker.base,
            message="work",
            author="o",
            email="o@x",
            at=1,
        )
        await self.remotes.push_commit(REPO, commit, branch)
        return imported


# ── the files that they published ─────────────────────────────────────────────────────────────────


async def read_tree(repo: Path, ref: str) -> Tree | None:
    """Return every file of a commit; None when there is no such commit."""
    try:
        output = await run_git(repo, "ls-tree", "-r", "-z", ref, limits=WHOLE_OUTPUT)
    except GitCommandFailed:
        return None
    rows = output.split(b"\0")[:-1]
    entries = [(*row.split(b"\t", 1)[0].split(), row.split(b"\t", 1)[1]) for row in rows]
    blobs = [blob for _mode, kind, blob, _path in entries if kind == b"blob"]
    sizes = await _read_objects(repo, blobs, "--batch-check=%(objectsize)")
    output = await _read_objects(repo, blobs, "--batch=%(objectname)")
    contents = dict(_split_blobs(output, blobs, [int(size) for size in sizes.split()]))
    return {
        path.decode(errors="replace"): (mode.decode(), contents.get(blob, ""))
        for mode, _kind, blob, path in entries
    }


async def _read_objects(repo: Path, blobs: list[bytes], batch: str) -> bytes:
    """Return what `git cat-file` prints for blobs in a batch mode."""
    if not blobs:
        return b""
    request = b"\n".join(blobs) + b"\n"
    return await run_git(repo, "cat-file", batch, stdin=request, limits=WHOLE_OUTPUT)


def _split_blobs(
    output: bytes, blobs: list[bytes], sizes: list[int]
) -> Iterator[tuple[bytes, str]]:
    """Yield each blob with its content, from the output of `git cat-file --batch`."""
    position = 0
    for blob, size in zip(blobs, sizes, strict=True):
        position += len(blob) + 1
        yield blob, output[position : position + size].decode(errors="replace")
        position += size + 1


def contains_secret(tree: Tree, canary: str) -> bool:
    return any(canary in content or PRIVATE in content for _mode, content in tree.values())


def read_files(folder: Path) -> Mapping[str, bytes]:
    """Return the content of every file below a folder."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }
