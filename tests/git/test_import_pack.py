"""Git on the host: work from a sandbox is imported as an untrusted push."""

import asyncio
import contextlib
import gc
import os
import resource
import secrets
import subprocess
import tempfile
from pathlib import Path
from typing import IO

import pytest

from osiris.bot.git.failures import translate_failure
from osiris.bot.git.path_checks import fold_prefixes, is_protected
from osiris.bot.git.repositories import HostRepositories
from osiris.bot.git.runner import (
    GitCommandFailed,
    GitLimits,
    LimitReached,
    escape_path,
    run_git,
)
from osiris.core.errors import LocalTimeout, NeedsOperator, Refused, Unavailable
from osiris.core.ports.repositories import ImportedWork
from osiris.core.ports.sandbox import Export

REPO = "acme/shop"


def run_plain_git(folder: Path, *args: str, stdin: bytes = b"") -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@x", "-c", "init.defaultBranch=main"]
    result = subprocess.run(
        ["git", *identity, *args], cwd=folder, input=stdin, capture_output=True, check=True
    )
    return result.stdout.decode().strip()


@pytest.fixture
async def git_setup(folder: Path) -> tuple[HostRepositories, str, Path]:
    """Provide host repositories whose mirror has one commit, that commit, and a clone in which an
    untrusted user works."""
    repositories = HostRepositories(folder / "git")
    await repositories.prepare_repository(REPO)
    work = folder / "work"
    work.mkdir()
    run_plain_git(work, "init", "-q")
    (work / "a.txt").write_text("one\n")
    run_plain_git(work, "add", "-A")
    run_plain_git(work, "commit", "-qm", "base")
    run_plain_git(work, "push", "-q", str(repositories.mirror_path(REPO)), "HEAD:refs/heads/main")
    return repositories, run_plain_git(work, "rev-parse", "HEAD"), work


async def import_tree(
    repositories: HostRepositories, work: Path, base: str, tree: str
) -> ImportedWork:
    """Import a tree of the untrusted user."""
    with write_pack(build_pack(work, base, tree)) as pack:
        return await repositories.import_pack(REPO, base, Export(tree=tree, pack=pack), ())


def build_pack(work: Path, base: str, tree: str) -> bytes:
    revisions = f"{tree}\n^{base}\n".encode()
    argv = ["git", "pack-objects", "-q", "--revs", "--thin", "--stdout"]
    return subprocess.run(argv, cwd=work, input=revisions, capture_output=True, check=True).stdout


def write_pack(content: bytes) -> IO[bytes]:
    """Return a pack as a sandbox delivers it: an open file without a name."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  (the user of the export closes it)
    file.write(content)
    file.seek(0)
    return file


async def test_good_work_is_taken_and_the_same_commit_is_made_every_time(git_setup):
    repositories, base, work = git_setup
    (work / "a.txt").write_text("two\n")
    run_plain_git(work, "add", "-A")
    tree = run_plain_git(work, "write-tree")
    imported = await import_tree(repositories, work, base, tree)
    assert [(f.path, f.status, f.additions, f.deletions) for f in imported.files] == [
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
    run_plain_git(work, "add", "-A")
    tree = run_plain_git(work, "write-tree")
    pack_content = build_pack(work, base, tree)
    for content in (pack_content[: len(pack_content) // 2], b"garbage", b""):
        with (
            write_pack(content) as pack,
            pytest.raises(Refused, match="the work could not be taken over"),
        ):
            await repositories.import_pack(REPO, base, Export(tree=tree, pack=pack), ())


async def test_a_repository_prepared_for_one_run_stays_readable_for_the_others(git_setup):
    repositories, base, _ = git_setup
    link = repositories.repository_path(REPO) / "objects/info/alternates"
    # a file that is overwritten in place is empty for a moment; readers must never see that
    with link.open() as file:
        link.write_text("/moved/away\n")
        before = file.read()
        await repositories.prepare_repository(REPO)
        file.seek(0)
        assert file.read() == before
    inode = link.stat().st_ino
    await repositories.prepare_repository(REPO)
    assert link.stat().st_ino == inode
    assert await repositories.has_tree(REPO, f"{base}^{{tree}}")


async def test_a_repository_that_this_machine_cannot_make_is_an_outage(folder: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # no file can be written, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(Unavailable, match="this machine could not make a repository"):
            await HostRepositories(folder / "git").prepare_repository(REPO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in (folder / "git").rglob("*") if path.name.endswith("git")] == []
    await HostRepositories(folder / "git").prepare_repository(REPO)


async def test_work_on_a_base_that_went_missing_is_taken_once_it_is_there_again(git_setup):
    repositories, _, work = git_setup
    lines = "".join(f"{n} {n * n}\n" for n in range(3000))
    (work / "a.txt").write_text(lines)
    run_plain_git(work, "commit", "-qam", "a base that is packed against")
    base = run_plain_git(work, "rev-parse", "HEAD")
    (work / "a.txt").write_text(lines + "two\n")
    run_plain_git(work, "add", "-A")
    tree = run_plain_git(work, "write-tree")
    repositories.remove_repository(REPO)
    await repositories.prepare_repository(REPO)
    with pytest.raises(Unavailable, match=f"{base} is missing"):
        await import_tree(repositories, work, base, tree)
    run_plain_git(work, "push", "-q", str(repositories.mirror_path(REPO)), "HEAD:refs/heads/main")
    assert (await import_tree(repositories, work, base, tree)).tree == tree


async def test_a_tree_with_a_dot_git_entry_is_refused(git_setup):
    repositories, base, work = git_setup
    blob = run_plain_git(
        work, "hash-object", "-w", "--stdin", stdin=b"[core]\n\tfsmonitor = evil\n"
    )
    inner = run_plain_git(work, "mktree", stdin=f"100644 blob {blob}\tconfig\n".encode())
    tree = run_plain_git(work, "mktree", stdin=f"040000 tree {inner}\t.git\n".encode())
    with pytest.raises(Refused, match="could not be taken over"):
        await import_tree(repositories, work, base, tree)


async def test_a_tree_that_is_a_commit_or_missing_is_refused(git_setup):
    repositories, base, work = git_setup
    good = run_plain_git(work, "write-tree")
    for tree in (base, "1" * 40):
        with write_pack(build_pack(work, base, good)) as pack, pytest.raises(Refused):
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


def build_alias(script: str) -> tuple[str, str, str]:
    """Return arguments with which git runs a script as its child."""
    return "-c", f"alias.x=!{script}", "x"


async def test_git_prints_no_more_than_it_may(git_setup):
    repositories, _, _ = git_setup
    endless_output = build_alias("yes")
    with pytest.raises(LimitReached, match="printed more than 64 KiB") as reached:
        await run_git(repositories.repository_path(REPO), *endless_output)
    assert reached.value.limit == "output"
    assert isinstance(reached.value, Refused)
    limits = GitLimits(output=1000)
    assert (
        await run_git(repositories.repository_path(REPO), *endless_output, limits=limits, head=True)
        == b"y\n" * 500
    )
    exact_output = build_alias("printf %1000s x")
    assert (
        len(await run_git(repositories.repository_path(REPO), *exact_output, limits=limits)) == 1000
    )
    assert (
        len(
            await run_git(
                repositories.repository_path(REPO), *exact_output, limits=limits, head=True
            )
        )
        == 1000
    )
    with tempfile.TemporaryFile() as file:
        with pytest.raises(LimitReached, match="printed more than 64 KiB"):
            await run_git(
                repositories.repository_path(REPO),
                "-C",
                "/",
                *build_alias("exec dd if=/dev/zero status=none"),
                to=file,
            )
        assert file.seek(0, os.SEEK_END) <= 64 << 10


async def test_of_what_git_complains_of_the_beginning_and_the_end_are_kept(git_setup):
    repositories, _, _ = git_setup
    with pytest.raises(GitCommandFailed) as failed:
        await run_git(
            repositories.repository_path(REPO),
            *build_alias("(echo first; seq 300000; echo last) >&2; exit 1"),
        )
    assert failed.value.output.startswith("first\n1\n2\n")
    assert failed.value.output.endswith("\nlast")
    assert "\n[...]\n" in failed.value.output
    assert len(failed.value.output) < 9000


async def test_git_that_takes_a_processor_or_memory_too_long_is_refused(git_setup):
    """The error is a refusal, because a retry would use as much again. No child of git is left."""
    repositories, _, _ = git_setup
    with pytest.raises(LimitReached, match="needed more than 1 seconds of processor time"):
        await run_git(
            repositories.repository_path(REPO),
            *build_alias("while :; do :; done"),
            limits=GitLimits(cpu=1),
        )
    large = [
        run_plain_git(
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
        await run_git(repositories.repository_path(REPO), *build_alias(f"sleep 86{mark} & yes"))
    with pytest.raises(LocalTimeout):
        await run_git(
            repositories.repository_path(REPO),
            *build_alias(f"sleep 86{mark} & exit 0"),
            limits=GitLimits(seconds=0.3),
        )
    async with asyncio.timeout(30):
        while _find_sleeping(mark):
            await asyncio.sleep(0.05)


def _find_sleeping(mark: str) -> list[bytes]:
    command_lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # the process has ended
            command_lines.append(path.read_bytes())
    return [
        command_line
        for command_line in command_lines
        if mark.encode() in command_line and b"sleep" in command_line
    ]


@pytest.mark.parametrize("limit", ["seconds", "cpu", "memory", "output", "file_size"])
def test_no_limit_of_git_can_be_turned_off(limit: str):
    for value in (0, -1, float("inf")):
        with pytest.raises(ValueError, match="positive"):
            GitLimits(**{limit: value})


async def test_git_that_is_cut_off_at_any_moment_leaves_nothing_open(git_setup):
    """A worker that stops cancels the commands that run, and those that were only requested."""
    repositories, _, _ = git_setup
    before = len(os.listdir("/proc/self/fd"))
    for moment in range(12):
        task = asyncio.create_task(
            run_git(repositories.mirror_path(REPO), "cat-file", "--batch", stdin=b"HEAD\n" * 1000)
        )
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    gc.collect()  # files left open are reported here, and a warning is an error
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(
    ("output", "kind"),
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
def test_what_git_says_decides_between_never_and_later(output: str, kind: type[Exception]):
    assert type(translate_failure(GitCommandFailed("push", output), "push")) is kind


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
