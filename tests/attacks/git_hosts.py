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


class Thief:
    """An address of the attackers; `heard` is what came there."""

    def __init__(self) -> None:
        self.heard = b""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                with self._listening.accept()[0] as caller:
                    caller.settimeout(1)
                    self.heard += caller.recv(4096)
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


class Trusting:
    """A host that runs its git in the agent's repository, as the worker's user. Things that plants
    are after lie about: a secret, and another repository."""

    def __init__(self, attacked: Attacked, thief: Thief) -> None:
        self._attacked = attacked
        self._thief = thief
        told = attacked.unprotected(_words(PRELUDE + MAKE, REPO=attacked.repo, PRIVATE=PRIVATE))
        self.ground = Path(told.strip()).parent
        assert self.ground.is_dir(), told

    async def harms(self, name: str, plant: Plant, told: Mapping[str, str]) -> set[Harm]:
        """Everything that goes wrong for this host when it takes the work that the agent left."""
        heard = self._thief.heard
        patience = "0.5" if plant.harm is Harm.HANGS else "20"
        more = {
            **told,
            "NAME": name,
            "PLANT": WORK + plant.script,
            "HOST": plant.host,
            "PATIENCE": patience,
        }
        shown = self._attacked.unprotected(_words(PRELUDE + TRUST, **more))
        place = self.ground.with_name(name)
        pushed = await tree_of(place / "origin.git", "refs/heads/bot")
        strayed = (place / "work/.git/evil/refs/heads/bot").exists() or self._thief.heard != heard
        found = {
            Harm.RUNS: (place / "marker").exists(),
            Harm.LEAKS: leaks(pushed or {}, self._attacked.canary),
            Harm.TOUCHES: contents(place / "other") != contents(self.ground / "other"),
            Harm.STRAYS: strayed,
            Harm.HIDES: plant.sign not in shown,
            Harm.SPREADS: bool(plant.bad) and any(plant.bad in path for path in pushed or {}),
            Harm.LOSES: not any(
                "change\n" in content for _mode, content in (pushed or {}).values()
            ),
            Harm.HANGS: shown.endswith("it hung\n"),
        }
        return {harm for harm, is_so in found.items() if is_so}


def _words(script: str, **told: object) -> str:
    """A script that is told some words."""
    lines = [f"export {name}={_quoted(str(value))}" for name, value in told.items()]
    return "\n".join([*lines, script])


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def planting(plant: Plant, told: Mapping[str, str]) -> str:
    """What the agent runs in its sandbox."""
    return _words(PRELUDE + WORK + plant.script, **told)


# ── a host as Osiris is one ───────────────────────────────────────────────────────────────────────


class _FakeAppAuth:
    async def mint_token(self, repo: str, **rights: str) -> str:
        return "token"


async def _leave() -> None:
    pass


@dataclass(frozen=True)
class Careful:
    """Osiris' own desk and depot, which push to the repository `origin` by its address."""

    desk: HostRepositories
    depot: RemoteRepositories
    origin: Path

    @classmethod
    async def at(cls, place: Path, repo: Path) -> "Careful":
        """Made anew below `place`, for the repository `repo`."""
        origin = place / "origins" / f"{REPO}.git"
        desk = HostRepositories(place / "git")
        await desk.prepare_repository(REPO)
        for target in (origin, desk.mirror_path(REPO)):
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
            desk,
            RemoteRepositories(desk, _FakeAppAuth(), f"file://{place}/origins", _leave),
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
                taken = await self.desk.import_pack(
                    REPO, attacked.base, Export(tree=tree, pack=pack), Policy().deny
                )
        except (Refused, Unavailable) as error:
            return error
        commit = await self.desk.commit_tree(
            REPO, tree=taken.tree, base=attacked.base, message="work", author="o", email="o@x", at=1
        )
        await self.depot.push_commit(REPO, commit, name)
        return taken


# ── what they did ─────────────────────────────────────────────────────────────────────────────────


async def tree_of(repo: Path, ref: str) -> Tree | None:
    """Every file of a commit; None when there is no such commit."""
    try:
        rows = (await run_git(repo, "ls-tree", "-r", "-z", ref, limits=WHOLE)).split(b"\0")[:-1]
    except GitCommandFailed:
        return None
    found = [(*row.split(b"\t", 1)[0].split(), row.split(b"\t", 1)[1]) for row in rows]
    blobs = [blob for _mode, kind, blob, _path in found if kind == b"blob"]
    asked = b"\n".join(blobs) + b"\n"
    batch = ("cat-file", "--batch=%(objectname)")
    told = await run_git(repo, *batch, stdin=asked, limits=WHOLE) if blobs else b""
    texts = dict(_blobs(told, blobs, [int(n) for n in (await _sizes(repo, blobs)).split()]))
    return {
        path.decode(errors="replace"): (mode.decode(), texts.get(blob, ""))
        for mode, _kind, blob, path in found
    }


async def _sizes(repo: Path, blobs: list[bytes]) -> bytes:
    asked = b"\n".join(blobs) + b"\n"
    batch = ("cat-file", "--batch-check=%(objectsize)")
    return await run_git(repo, *batch, stdin=asked, limits=WHOLE) if blobs else b""


def _blobs(told: bytes, blobs: list[bytes], sizes: list[int]) -> Iterator[tuple[bytes, str]]:
    at = 0
    for blob, size in zip(blobs, sizes, strict=True):
        at += len(blob) + 1
        yield blob, told[at : at + size].decode(errors="replace")
        at += size + 1


def leaks(tree: Tree, canary: str) -> bool:
    return any(canary in content or PRIVATE in content for _mode, content in tree.values())


def contents(folder: Path) -> Mapping[str, bytes]:
    """Every file below a folder, and what is in it."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }
