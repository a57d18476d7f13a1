"""Git on the host: what comes out of a sandbox is a stranger's push."""

import asyncio
import contextlib
import gc
import os
import resource
import secrets
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from osiris.bot.git.path_checks import fold_prefixes, is_protected
from osiris.bot.git.repositories import HostRepositories
from osiris.bot.git.runner import (
    GitCommandFailed,
    GitLimits,
    LimitReached,
    escape_path,
    run_git,
    translate_failure,
)
from osiris.core.errors import LocalTimeout, NeedsOperator, Refused, Unavailable
from osiris.core.ports.repositories import ImportedWork
from osiris.core.ports.sandbox import Export

REPO = "acme/shop"


def plain(folder: Path, *args: str, stdin: bytes = b"") -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@x", "-c", "init.defaultBranch=main"]
    done = subprocess.run(
        ["git", *who, *args], cwd=folder, input=stdin, capture_output=True, check=True
    )
    return done.stdout.decode().strip()


Make = Callable[[str], Export]


@pytest.fixture
async def git_setup(place: Path) -> tuple[HostRepositories, str, Path]:
    """Host repositories whose mirror has one commit, that commit, and a clone that a stranger works
    in."""
    repositories = HostRepositories(place / "git")
    await repositories.prepare_repository(REPO)
    work = place / "work"
    work.mkdir()
    plain(work, "init", "-q")
    (work / "a.txt").write_text("one\n")
    plain(work, "add", "-A")
    plain(work, "commit", "-qm", "base")
    plain(work, "push", "-q", str(repositories.mirror_path(REPO)), "HEAD:refs/heads/main")
    return repositories, plain(work, "rev-parse", "HEAD"), work


async def take(repositories: HostRepositories, work: Path, base: str, tree: str) -> ImportedWork:
    """Take a tree of the stranger's."""
    with packed(pack_of(work, base, tree)) as pack:
        return await repositories.import_pack(REPO, base, Export(tree=tree, pack=pack), ())


def pack_of(work: Path, base: str, tree: str) -> bytes:
    wanted = f"{tree}\n^{base}\n".encode()
    argv = ["git", "pack-objects", "-q", "--revs", "--thin", "--stdout"]
    return subprocess.run(argv, cwd=work, input=wanted, capture_output=True, check=True).stdout


def packed(content: bytes) -> IO[bytes]:
    """A pack as a sandbox gives it: a file of no name."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  (whoever gets the export closes it)
    file.write(content)
    file.seek(0)
    return file


async def test_good_work_is_taken_and_the_same_commit_is_made_every_time(git_setup):
    repositories, base, work = git_setup
    (work / "a.txt").write_text("two\n")
    plain(work, "add", "-A")
    tree = plain(work, "write-tree")
    taken = await take(repositories, work, base, tree)
    assert [(f.path, f.status, f.additions, f.deletions) for f in taken.files] == [
        ("a.txt", "modified", 1, 1)
    ]
    commits = {
        await repositories.commit_tree(
            REPO, tree=tree, base=base, message="m", author="o", email="o@x", at=1
        )
        for _ in range(2)
    }
    assert len(commits) == 1


async def test_a_pack_that_is_cut_or_garbage_is_refused(git_setup):
    repositories, base, work = git_setup
    (work / "a.txt").write_text("two\n")
    plain(work, "add", "-A")
    tree = plain(work, "write-tree")
    whole = pack_of(work, base, tree)
    for bad in (whole[: len(whole) // 2], b"garbage", b""):
        with packed(bad) as pack, pytest.raises(Refused, match="the work could not be taken over"):
            await repositories.import_pack(REPO, base, Export(tree=tree, pack=pack), ())


async def test_a_repository_prepared_for_one_run_stays_readable_for_the_others(git_setup):
    repositories, base, _ = git_setup
    link = repositories.repository_path(REPO) / "objects/info/alternates"
    # a reader keeps what it has: a file written over in place would be empty for a moment
    with link.open() as held:
        link.write_text("/moved/away\n")
        before = held.read()
        await repositories.prepare_repository(REPO)
        held.seek(0)
        assert held.read() == before
    inode = link.stat().st_ino
    await repositories.prepare_repository(REPO)
    assert link.stat().st_ino == inode
    assert await repositories.has_tree(REPO, f"{base}^{{tree}}")


async def test_a_repository_that_this_machine_cannot_make_is_an_outage(place: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # no file can be written, as on a disk that is full
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(Unavailable, match="this machine could not make a repository"):
            await HostRepositories(place / "git").prepare_repository(REPO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in (place / "git").rglob("*") if path.name.endswith("git")] == []
    await HostRepositories(place / "git").prepare_repository(REPO)


async def test_work_on_a_base_that_went_missing_is_taken_once_it_is_there_again(git_setup):
    repositories, _, work = git_setup
    lines = "".join(f"{n} {n * n}\n" for n in range(3000))
    (work / "a.txt").write_text(lines)
    plain(work, "commit", "-qam", "a base that is packed against")
    base = plain(work, "rev-parse", "HEAD")
    (work / "a.txt").write_text(lines + "two\n")
    plain(work, "add", "-A")
    tree = plain(work, "write-tree")
    repositories.remove_repository(REPO)
    await repositories.prepare_repository(REPO)
    with pytest.raises(Unavailable, match=f"{base} is missing"):
        await take(repositories, work, base, tree)
    plain(work, "push", "-q", str(repositories.mirror_path(REPO)), "HEAD:refs/heads/main")
    assert (await take(repositories, work, base, tree)).tree == tree


async def test_a_tree_with_a_dot_git_entry_is_refused(git_setup):
    repositories, base, work = git_setup
    blob = plain(work, "hash-object", "-w", "--stdin", stdin=b"[core]\n\tfsmonitor = evil\n")
    inner = plain(work, "mktree", stdin=f"100644 blob {blob}\tconfig\n".encode())
    tree = plain(work, "mktree", stdin=f"040000 tree {inner}\t.git\n".encode())
    with pytest.raises(Refused, match="could not be taken over"):
        await take(repositories, work, base, tree)


async def test_a_tree_that_is_a_commit_or_missing_is_refused(git_setup):
    repositories, base, work = git_setup
    good = plain(work, "write-tree")
    for tree in (base, "1" * 40):
        with packed(pack_of(work, base, good)) as pack, pytest.raises(Refused):
            await repositories.import_pack(REPO, base, Export(tree=tree, pack=pack), ())


async def test_a_token_is_in_no_argv_and_no_error(git_setup):
    repositories, _, _ = git_setup
    config = {"http.extraHeader": "Authorization: Basic canary", "protocol.http.allow": "always"}
    with pytest.raises(GitCommandFailed) as failed:
        await run_git(
            repositories.repository_path(REPO),
            "ls-remote",
            "http://127.0.0.1:9/x.git",
            config=config,
        )
    assert "canary" not in str(failed.value)


async def test_git_that_hangs_is_ended(git_setup):
    repositories, _, _ = git_setup
    with pytest.raises(LocalTimeout, match=r"no answer in 0\.3 seconds"):
        await run_git(
            repositories.repository_path(REPO),
            "-c",
            "alias.x=!sleep 30",
            "x",
            limits=GitLimits(seconds=0.3),
        )


def alias(script: str) -> tuple[str, str, str]:
    """A git that runs a script of ours as its child."""
    return "-c", f"alias.x=!{script}", "x"


async def test_git_prints_no_more_than_it_may(git_setup):
    repositories, _, _ = git_setup
    endless = alias("yes")
    with pytest.raises(LimitReached, match="printed more than 64 KiB") as reached:
        await run_git(repositories.repository_path(REPO), *endless)
    assert reached.value.limit == "output"
    assert isinstance(reached.value, Refused)
    most = GitLimits(output=1000)
    assert (
        await run_git(repositories.repository_path(REPO), *endless, limits=most, head=True)
        == b"y\n" * 500
    )
    exact = alias("printf %1000s x")
    assert len(await run_git(repositories.repository_path(REPO), *exact, limits=most)) == 1000
    assert (
        len(await run_git(repositories.repository_path(REPO), *exact, limits=most, head=True))
        == 1000
    )
    with tempfile.TemporaryFile() as file:
        with pytest.raises(LimitReached, match="printed more than 64 KiB"):
            await run_git(
                repositories.repository_path(REPO),
                "-C",
                "/",
                *alias("exec dd if=/dev/zero status=none"),
                to=file,
            )
        assert file.seek(0, os.SEEK_END) <= 64 << 10


async def test_of_what_git_complains_of_the_beginning_and_the_end_are_kept(git_setup):
    repositories, _, _ = git_setup
    with pytest.raises(GitCommandFailed) as failed:
        await run_git(
            repositories.repository_path(REPO),
            *alias("(echo first; seq 300000; echo last) >&2; exit 1"),
        )
    assert failed.value.output.startswith("first\n1\n2\n")
    assert failed.value.output.endswith("\nlast")
    assert "\n[...]\n" in failed.value.output
    assert len(failed.value.output) < 9000


async def test_git_that_takes_a_processor_or_memory_too_long_is_refused(git_setup):
    """And it leaves none of its children behind: not to be tried again, it would take as much
    again."""
    repositories, _, _ = git_setup
    with pytest.raises(LimitReached, match="needed more than 1 seconds of processor time"):
        await run_git(
            repositories.repository_path(REPO),
            *alias("while :; do :; done"),
            limits=GitLimits(cpu=1),
        )
    large = [
        plain(
            repositories.mirror_path(REPO),
            "hash-object",
            "-w",
            "--stdin",
            stdin=bytes((60 << 20) + n),
        )
        for n in range(2)
    ]
    with pytest.raises(LimitReached, match="needed more than 32 MiB of memory"):
        await run_git(
            repositories.mirror_path(REPO),
            "diff",
            "--text",
            *large,
            limits=GitLimits(memory=32 << 20),
        )


async def test_children_of_git_that_was_ended_end_too(git_setup):
    repositories, _, _ = git_setup
    mark = f"{os.getpid()}.{secrets.randbelow(10**9):09}"
    with pytest.raises(LimitReached):
        await run_git(repositories.repository_path(REPO), *alias(f"sleep 86{mark} & yes"))
    with pytest.raises(LocalTimeout):
        await run_git(
            repositories.repository_path(REPO),
            *alias(f"sleep 86{mark} & exit 0"),
            limits=GitLimits(seconds=0.3),
        )
    async with asyncio.timeout(5):
        while _sleeping(mark):
            await asyncio.sleep(0.05)


def _sleeping(mark: str) -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            found.append(path.read_bytes())
    return [words for words in found if mark.encode() in words and b"sleep" in words]


@pytest.mark.parametrize("limit", ["seconds", "cpu", "memory", "output", "file_size"])
def test_no_limit_of_git_can_be_turned_off(limit: str):
    for value in (0, -1, float("inf")):
        with pytest.raises(ValueError, match="positive"):
            GitLimits(**{limit: value})


async def test_git_that_is_cut_off_at_any_moment_leaves_nothing_open(git_setup):
    """A worker that stops cuts off whatever is under way, also what has only been asked for."""
    repositories, _, _ = git_setup
    before = len(os.listdir("/proc/self/fd"))
    for moment in range(12):
        asked = asyncio.create_task(
            run_git(repositories.mirror_path(REPO), "cat-file", "--batch", stdin=b"HEAD\n" * 1000)
        )
        for _ in range(moment):
            await asyncio.sleep(0)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
    gc.collect()  # what nobody closed would be told of here, and that is an error
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ("! [rejected] main -> main (fetch first)", Refused),
        (
            "! [remote rejected] x -> x (refusing to allow a GitHub App to update workflow)",
            NeedsOperator,
        ),
        (
            "fatal: unable to access 'https://x/': The requested URL returned error: 403",
            NeedsOperator,
        ),
        ("remote: Repository not found.", NeedsOperator),
        ("fatal: unable to access 'https://x/': Could not resolve host: x", Unavailable),
        (
            "fatal: unable to access 'https://x/': The requested URL returned error: 502",
            Unavailable,
        ),
        ("", Unavailable),
    ],
)
def test_what_git_says_decides_between_never_and_later(told: str, kind: type[Exception]):
    assert type(translate_failure(GitCommandFailed("push", told), "push")) is kind


def test_any_file_name_can_be_shown():
    assert escape_path(b"caf\xe9 \n\x1b[31m \xe2\x80\xae") == "caf\\xe9 \\n\\x1b[31m \\u202e"


@pytest.mark.parametrize(
    ("path", "deny"),
    [
        (".github/workflows/ci.yml", ".github/workflows/"),
        (".GitHub/Workflows/ci.yml", ".github/workflows/"),
        (".github", ".github/workflows/"),
        ("資料\u3000x/a", "資料\u3000x/"),
        ("a\u00a0b/c", "a\u00a0b/"),
        ("👩\u200d💻/a", "👩\u200d💻/"),
        ("caf\u0065\u0301/a", "caf\u00e9/"),
    ],
)
def test_a_protected_path_is_protected_however_it_is_written(path, deny):
    assert is_protected(path.encode(), fold_prefixes([deny]))
    assert not is_protected(b"src/app.py", fold_prefixes([deny, ""]))
