"""Two hosts that take an agent's work: one as Osiris does it, and one that trusts the repository of
the agent."""

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
from tests.attacks.conftest import Attacked
from tests.attacks.hostile_repositories import Harm, Plant

REPO = "acme/shop"
WHOLE = GitLimits(output=64 << 20)
PRIVATE = "what-another-repository-holds\n"
Tree = Mapping[str, tuple[str, str]]
"""path -> (mode, content)."""


class AttackerServer:
    """An address of the attackers; `received` is what came there."""

    def __init__(self) -> None:
        self.received = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                with self._listener.accept()[0] as caller:
                    caller.settimeout(1)
                    self.received += caller.recv(4096)
                    caller.sendall(
                        b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )


# ── a host that trusts ────────────────────────────────────────────────────────────────────────────

PRELUDE = """
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@x GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@x GIT_TERMINAL_PROMPT=0
program() { printf '#!/bin/sh\\ntouch "%s"\\nexec cat\\n' "$M" >"$1"; chmod +x "$1"; }
"""
MAKE = """
set -e
export GIT_TEMPLATE_DIR=
git config --file safe safe.directory '*'
export GIT_CONFIG_GLOBAL=$PWD/safe
mkdir -p ground/outside; cd ground
echo "$OSIRIS_CANARY" >outside/secret
git init -q -b main other; printf %s "$PRIVATE" >other/private.txt
git -C other add -A; git -C other commit -qm private
git clone -q --bare "$REPO" origin.git
git clone -q origin.git work; cd work
git checkout -q -b side; echo aside >>README.md; git commit -qam side; git push -q origin side
git checkout -q -b work main; git branch -qD side; echo $PWD
"""
TRUST = """
cp -a ground "$NAME"; cd "$NAME/work"
M=$PWD/../marker OUT=$(realpath ../outside) OTHER=$(realpath ../other) ORIGIN=$(realpath ../origin.git)
export M OUT OTHER ORIGIN
git config remote.origin.url "$ORIGIN"
( eval "$PLANT" ) >/dev/null 2>&1
rm -f "$M"
timeout "$PATIENCE" bash -c "$HOST" 2>&1 || [ $? != 124 ] || echo "it hung"
"""
WORK = "echo change >>README.md; mkdir -p src; echo new >src/new.txt\n"


class NaiveHost:
    """A host that runs its git in the agent's repository, as the worker's user. Things that plants
    are after lie about: a secret, and another repository."""

    def __init__(self, attacked: Attacked, attacker: AttackerServer) -> None:
        self._attacked = attacked
        self._attacker = attacker
        output = attacked.unprotected(
            _export_variables(PRELUDE + MAKE, REPO=attacked.repo, PRIVATE=PRIVATE)
        )
        self.template = Path(output.strip()).parent
        assert self.template.is_dir(), output

    async def find_harms(self, name: str, plant: Plant, script_env: Mapping[str, str]) -> set[Harm]:
        """Everything that goes wrong for this host when it takes the work that the agent left."""
        received = self._attacker.received
        timeout_seconds = "0.5" if plant.harm is Harm.HANGS else "20"
        more = {
            **script_env,
            "NAME": name,
            "PLANT": WORK + plant.script,
            "HOST": plant.host,
            "PATIENCE": timeout_seconds,
        }
        shown = self._attacked.unprotected(_export_variables(PRELUDE + TRUST, **more))
        place = self.template.with_name(name)
        pushed = await read_tree(place / "origin.git", "refs/heads/bot")
        has_strayed = (
            place / "work/.git/evil/refs/heads/bot"
        ).exists() or self._attacker.received != received
        found = {
            Harm.RUNS: (place / "marker").exists(),
            Harm.LEAKS: contains_secret(pushed or {}, self._attacked.canary),
            Harm.TOUCHES: read_files(place / "other") != read_files(self.template / "other"),
            Harm.STRAYS: has_strayed,
            Harm.HIDES: plant.sign not in shown,
            Harm.SPREADS: bool(plant.bad) and any(plant.bad in path for path in pushed or {}),
            Harm.LOSES: not any(
                "change\n" in content for _mode, content in (pushed or {}).values()
            ),
            Harm.HANGS: shown.endswith("it hung\n"),
        }
        return {harm for harm, is_so in found.items() if is_so}


def _export_variables(script: str, **script_env: object) -> str:
    """A script that is told some words."""
    lines = [f"export {name}={_shell_quote(str(value))}" for name, value in script_env.items()]
    return "\n".join([*lines, script])


def _shell_quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def build_plant_script(plant: Plant, script_env: Mapping[str, str]) -> str:
    """What the agent runs in its sandbox."""
    return _export_variables(PRELUDE + WORK + plant.script, **script_env)


# ── a host as Osiris is one ───────────────────────────────────────────────────────────────────────


class _FakeAppAuth:
    async def mint_token(self, repo: str, **rights: str) -> str:
        return "token"


async def _no_pause() -> None:
    pass


@dataclass(frozen=True)
class HardenedHost:
    """Osiris' own local and remote repositories, which push to the repository `origin` by its address."""

    repositories: HostRepositories
    remotes: RemoteRepositories
    origin: Path

    @classmethod
    async def at(cls, place: Path, repo: Path) -> "HardenedHost":
        """Made anew below `place`, for the repository `repo`."""
        origin = place / "origins" / f"{REPO}.git"
        repositories = HostRepositories(place / "git")
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
            RemoteRepositories(repositories, _FakeAppAuth(), f"file://{place}/origins", _no_pause),
            origin,
        )

    @property
    def address(self) -> str:
        return f"file://{self.origin}"

    async def publish(self, attacked: Attacked, name: str) -> ImportedWork | Refused | Unavailable:
        """Take the work of session "s", commit it and push it to branch `name`."""
        file = attacked.place / "own" / "pack"
        try:
            tree = attacked.ask("export", "s", attacked.base, str(file))
            with file.open("rb") as pack:
                taken = await self.repositories.import_pack(
                    REPO, attacked.base, Export(tree=tree, pack=pack), Policy().deny
                )
        except (Refused, Unavailable) as error:
            return error
        commit = await self.repositories.commit_tree(
            REPO, tree=taken.tree, base=attacked.base, message="work", author="o", email="o@x", at=1
        )
        await self.remotes.push_commit(REPO, commit, name)
        return taken


# ── what they did ─────────────────────────────────────────────────────────────────────────────────


async def read_tree(repo: Path, ref: str) -> Tree | None:
    """Every file of a commit; None when there is no such commit."""
    try:
        rows = (await run_git(repo, "ls-tree", "-r", "-z", ref, limits=WHOLE)).split(b"\0")[:-1]
    except GitCommandFailed:
        return None
    found = [(*row.split(b"\t", 1)[0].split(), row.split(b"\t", 1)[1]) for row in rows]
    blobs = [blob for _mode, kind, blob, _path in found if kind == b"blob"]
    request = b"\n".join(blobs) + b"\n"
    batch = ("cat-file", "--batch=%(objectname)")
    output = await run_git(repo, *batch, stdin=request, limits=WHOLE) if blobs else b""
    texts = dict(_blobs(output, blobs, [int(n) for n in (await _sizes(repo, blobs)).split()]))
    return {
        path.decode(errors="replace"): (mode.decode(), texts.get(blob, ""))
        for mode, _kind, blob, path in found
    }


async def _sizes(repo: Path, blobs: list[bytes]) -> bytes:
    request = b"\n".join(blobs) + b"\n"
    batch = ("cat-file", "--batch-check=%(objectsize)")
    return await run_git(repo, *batch, stdin=request, limits=WHOLE) if blobs else b""


def _blobs(output: bytes, blobs: list[bytes], sizes: list[int]) -> Iterator[tuple[bytes, str]]:
    at = 0
    for blob, size in zip(blobs, sizes, strict=True):
        at += len(blob) + 1
        yield blob, output[at : at + size].decode(errors="replace")
        at += size + 1


def contains_secret(tree: Tree, canary: str) -> bool:
    return any(canary in content or PRIVATE in content for _mode, content in tree.values())


def read_files(folder: Path) -> Mapping[str, bytes]:
    """Every file below a folder, and what is in it."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }
