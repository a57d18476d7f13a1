"""Repositories that are unusual: converted line ends and encodings, large files, many files. What
the agent did not change is unchanged in its work, and what fails is told by its cause."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from osiris.core.errors import NeedsOperator, Refused
from osiris.core.ports.sandbox import GIB, SandboxLimits, Setup
from tests.conftest import list_disks
from tests.sandbox.conftest import MIB, Mirror, run_git

CONVERTED = {
    ".gitattributes": b"*.txt text eol=crlf\n*.utf16 text working-tree-encoding=UTF-16LE-BOM\n"
    b"*.id ident\n",
    "one.txt": b"1\r\n2\r\n",
    "two.txt": b"1\r\n2\r\n",
    "mixed.txt": b"1\r\n2\n",
    "good.txt": b"1\n2\n",
    "wrong.utf16": b"a\xff\n",
    "good.utf16": b"a\r\nb\n",
    "v.id": b"$Id: old $\n",
    "edited.txt": b"1\n",
}
REWRITE_ALL = "for f in *; do cat $f >/tmp/x; cat /tmp/x >$f; touch -d yesterday $f; done"


@pytest.fixture
def commit_bytes(folder: Path):
    """Provide a function that creates a mirror of files with just these bytes."""

    def commit(files: dict[str, bytes]) -> Mirror:
        seed = folder / "seed"
        run_git("init", "-q", "-b", "main", seed)
        for name, content in files.items():
            blob = run_git("hash-object", "-w", "--stdin", cwd=seed, stdin=content).decode().strip()
            run_git("update-index", "--add", "--cacheinfo", f"100644,{blob},{name}", cwd=seed)
        run_git("commit", "-q", "-m", "base", cwd=seed)
        run_git("clone", "-q", "--bare", seed, folder / "mirror.git")
        return Mirror(
            folder / "mirror.git", run_git("rev-parse", "HEAD", cwd=seed).decode().strip()
        )

    return commit


@pytest.fixture
def open_racy(sandbox, root, limits):
    """Provide a function that opens a session in which git cannot tell by the time whether a file
    was changed since the checkout."""

    async def create(mirror: Mirror, **options):
        options.setdefault("limits", limits)
        session, _ = await sandbox.create("shop-7-1", mirror.build_plan(**options))
        disk = next(disk for disk in list_disks(root) if disk.folder.name == "shop-7-1")
        os.utime(disk.host_only / "index", (1_000_000_000, 1_000_000_000))
        return session

    return create


async def run_script(session, script: str) -> None:
    result = await session.run(["/bin/bash", "-ec", script])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("script", ["true", REWRITE_ALL], ids=["not touched", "written again"])
async def test_converted_files_with_the_bytes_of_the_checkout_are_unchanged(
    script, open_racy, commit_bytes, folder
):
    mirror = commit_bytes(CONVERTED)
    session = await open_racy(mirror)
    await run_script(session, f"{script}; printf '3\\r\\n' >>edited.txt; chmod +x mixed.txt")
    tree = mirror.import_pack(await session.export(mirror.base), folder)
    unchanged = {name.encode(): (b"100644", content) for name, content in CONVERTED.items()}
    assert tree == unchanged | {
        b"edited.txt": (b"100644", b"1\n3\n"),
        b"mixed.txt": (b"100755", b"1\r\n2\n"),
    }


async def test_an_edit_of_a_converted_file_is_not_lost(open_racy, commit_bytes, folder):
    mirror = commit_bytes(CONVERTED)
    session = await open_racy(mirror)
    await run_script(
        session,
        "touch -r mixed.txt /tmp/t; printf '1\\r\\n3\\r\\n' >mixed.txt; touch -r /tmp/t mixed.txt",
    )
    tree = mirror.import_pack(await session.export(mirror.base), folder)
    assert tree[b"mixed.txt"] == (b"100644", b"1\n3\n")
    assert tree[b"one.txt"] == (b"100644", b"1\r\n2\r\n")


@pytest.mark.parametrize("script", ["true", "touch big"], ids=["not touched", "touched"])
async def test_a_file_of_the_base_that_is_larger_than_any_work_costs_nothing(
    script, open_racy, commit_bytes, limits, folder
):
    mirror = commit_bytes({"big": bytes(70 * MIB), "small": b"1\n"})
    large = replace(limits, disk=256 * MIB, file_size=128 * MIB, memory=512 * MIB)
    session = await open_racy(mirror, limits=large)
    await run_script(session, f"{script}; echo abc >new")
    export = await session.export(mirror.base)
    with export.pack:
        assert len(export.pack.read()) < 1000
        export.pack.seek(0)
        tree = mirror.import_pack(export, folder)
    assert tree[b"new"] == (b"100644", b"abc\n")
    assert len(tree[b"big"][1]) == 70 * MIB


async def test_restored_work_of_the_same_second_and_size_does_not_hide(
    sandbox, mirror, limits, folder
):
    seed = folder / "seed"
    (seed / "README.md").write_text("hallo\n")
    run_git("commit", "-qam", "work", cwd=seed)
    work = run_git("rev-parse", "HEAD", cwd=seed).decode().strip()
    run_git("push", "-q", mirror.path, "HEAD:refs/heads/work", cwd=seed)
    session, _ = await sandbox.create("a", mirror.build_plan(limits, files=work))
    await asyncio.sleep(1.2)  # then the index is settled
    await run_script(session, "echo new >new")
    tree = mirror.import_pack(await session.export(mirror.base), folder)
    assert tree[b"README.md"] == (b"100644", b"hallo\n")
    assert tree[b"src/app.py"] == (b"100644", b"print('one')\n")


FAILED_CHECKOUTS = {
    "a long name": ({"x" * 300: b"1"}, {}, "error: .*File name too long"),
    "a large file": (
        {"big": bytes(3 * MIB)},
        {"file_size": 2 * MIB},
        "the repository has a file of more than 2 MiB",
    ),
    "many files": (
        {f"f{n}": b"%d" % n for n in range(400)},
        {"inodes": 300},
        r"too many files: the session's disk holds 3\d\d at most",
    ),
    "a large repository": (
        {f"f{n}": os.urandom(900_000) for n in range(10)},
        {"disk": 6 * MIB, "inodes": 500},
        "does not fit on the session's disk of [56] MiB",
    ),
}


@pytest.mark.parametrize("name", FAILED_CHECKOUTS)
async def test_a_checkout_that_fails_is_told_by_its_cause(name, sandbox, commit_bytes, limits):
    files, changed, words = FAILED_CHECKOUTS[name]
    mirror = commit_bytes(files)
    with pytest.raises(Refused, match=words):
        await sandbox.create("a", mirror.build_plan(replace(limits, **changed)))


async def test_a_base_that_is_no_commit_is_told_in_the_words_of_git(sandbox, mirror, limits):
    plan = mirror.build_plan(limits, base=mirror.tree, trusted=mirror.tree)
    with pytest.raises(Refused, match=r"is not in the mirror: .*(commit|fatal: )"):
        await sandbox.create("a", plan)


def test_a_larger_disk_holds_more_files():
    assert SandboxLimits(disk=20 * GIB).most_files == 10 * SandboxLimits().most_files
    assert SandboxLimits(disk=20 * GIB, inodes=7).most_files == 7


async def test_a_disk_with_too_many_files_is_not_called_small(session, run_bash):
    await run_bash("i=0; while : >n$i; do i=$((i + 1)); done 2>/dev/null")
    assert "no room for one more file" in await session.files.write("more", b"1")
    assert "too many files: the session's disk holds 4,992" in session.describe_shortage()
    await run_bash("rm n*")
    assert session.describe_shortage() == ""


async def test_a_set_up_that_makes_too_many_files_is_told_so(sandbox, mirror, limits):
    fill = "for i in $(seq 2000); do : >n$i; done"
    setup = Setup(commands=(fill,), hosts=(), key="many")
    words = r"No space left on device.*; it has too many files: the session's disk holds 1,\d+ at"
    with pytest.raises(NeedsOperator, match=words):
        await sandbox.create("a", mirror.build_plan(replace(limits, inodes=1000), setup=setup))
