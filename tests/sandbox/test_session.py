"""Sessions: created, found again and removed, and never left incomplete."""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from osiris.core.errors import LocalTimeout, Occupied, Refused
from osiris.core.ports.sandbox import Setup
from osiris.tools.sandbox.backend import BubblewrapSandbox
from osiris.tools.sandbox.disks.tmpfs_disk import HELD, HOLD, TmpfsDisk
from osiris.tools.sandbox.jail.process import Jail
from osiris.tools.sandbox.options import SandboxOptions
from tests.sandbox.conftest import run_git

IS_ROOT = os.geteuid() == 0


@pytest.fixture
def open_session(sandbox, mirror, limits):
    async def create_and_seal(name="shop-7-1", **options):
        session, is_new = await sandbox.create(name, mirror.build_plan(limits, **options))
        await session.seal()
        return session, is_new

    return create_and_seal


def list_mounts(root: Path) -> list[str]:
    """Return the mounts below a folder, except those of checkouts in the cache."""
    lines = Path("/proc/mounts").read_text().splitlines()
    return [line for line in lines if str(root) in line and "/@checkout-" not in line.split()[1]]


async def test_a_session_is_a_clone_on_its_own_branch(session, run_bash, mirror):
    output = await run_bash(
        "git rev-parse HEAD; git branch --show-current; git status --short; git log -1 --format=%s"
    )
    assert output.split() == [mirror.base, "work", "base"]


async def test_opening_again_finds_the_work(open_session):
    first, is_new = await open_session()
    assert is_new
    await first.run(["bash", "-c", "echo mine >mine; echo note >~/note"])
    second, is_new = await open_session()
    assert not is_new
    assert (await second.run(["bash", "-c", "cat mine ~/note"])).output == b"mine\nnote\n"
    await second.destroy()
    await first.destroy()


async def test_closing_leaves_nothing(sandbox, root, open_session):
    session, _ = await open_session()
    assert sandbox.list_sessions() == ["shop-7-1"]
    await session.run(["bash", "-c", "mkdir -p $(printf 'd/%.0s' $(seq 1500)); chmod 0 d"])
    await session.destroy()
    await session.destroy()
    assert sandbox.list_sessions() == []
    assert list_mounts(root) == []
    assert list(root.rglob("shop*.img")) == []
    with pytest.raises(Refused, match="closed"):
        await session.run(["true"])


async def test_a_checkout_that_takes_too_long_leaves_nothing_and_is_tried_again_later(
    root, mirror, limits, sandbox
):
    with pytest.raises(LocalTimeout, match=r"took longer than 0\.001 seconds"):
        await sandbox.create("shop-7-1", mirror.build_plan(replace(limits, open_seconds=0.001)))
    assert (sandbox.list_sessions(), list_mounts(root)) == ([], [])


async def test_removing_by_name_is_fine_twice(sandbox, root, open_session):
    await open_session()
    await sandbox.remove("shop-7-1")
    await sandbox.remove("shop-7-1")
    assert sandbox.list_sessions() == []
    assert list_mounts(root) == []


async def test_a_session_that_was_never_sealed_is_made_anew(sandbox, mirror, open_session, limits):
    session, _ = await sandbox.create("shop-7-1", mirror.build_plan(limits))
    await session.run(["touch", "mine"])
    again, is_new = await open_session()
    assert is_new
    assert (await again.run(["ls", "mine"])).exit_code == 2
    await again.destroy()
    await session.destroy()


async def test_the_agent_cannot_forge_the_marker(run_bash, host_folder):
    await run_bash("touch /workspace/ready /tmp/ready ~/ready; touch /keep/ready ../keep/ready")
    assert {path.name for path in host_folder.iterdir()} == {"index", "notes.json", "ready"}
    assert host_folder.stat().st_uid == os.geteuid()


@pytest.mark.skipif(not IS_ROOT, reason="an ordinary user has no disk image")
async def test_a_session_whose_disk_was_put_away_is_mounted_again(sandbox, root, open_session):
    session, _ = await open_session()
    await session.run(["touch", "mine"])
    await session._discard_next_jail()
    subprocess.run(["umount", "--recursive", root / "shop-7-1"], check=True)
    # the kernel releases a disk only after the namespace of the last jail is removed
    async with asyncio.timeout(10):
        while not sandbox._get_disk("shop-7-1")._is_clean():
            await asyncio.sleep(0.05)
    again, is_new = await open_session()
    assert not is_new
    assert (await again.run(["ls", "mine"])).exit_code == 0
    await again.destroy()


WORKER_SCRIPT = """
import asyncio, sys
from pathlib import Path
from osiris.core.ports.sandbox import Plan
from osiris.tools.sandbox.options import SandboxOptions
from osiris.tools.sandbox.backend import BubblewrapSandbox
from tests.sandbox.conftest import run_git
async def main():
    root, mirror, base, word = sys.argv[1:]
    plan = Plan(repo=mirror, base=base, trusted=base)
    session, _ = await BubblewrapSandbox(Path(root), Path, SandboxOptions(weak=True)).create("shop-7-1", plan)
    await session.seal()
    await session.run(["touch", "/workspace/first"])
    running = asyncio.create_task(session.run(["bash", "-c", f"setsid sleep {word} & echo begun; sleep {word}"]))
    print("begun", flush=True)
    await running
asyncio.run(main())
"""


async def test_a_killed_worker_leaves_no_process_and_its_session_goes_on(
    mirror, find_processes, root, open_session
):
    word = "987654321.25"
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER_SCRIPT, root, mirror.path, mirror.base, word],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with worker:
        assert worker.stdout.readline() == b"begun\n"
        while not find_processes(f"sleep\0{word}"):
            assert worker.poll() is None
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    session, is_new = await open_session()
    assert not is_new
    for _ in range(1000):
        if not find_processes(f"sleep\0{word}"):
            break
        await session.run(["true"])
    assert find_processes(f"sleep\0{word}") == []
    assert (await session.run(["ls", "first"])).exit_code == 0
    await session.destroy()


async def test_a_jail_whose_monitor_was_killed_before_it_was_let_go_is_ended_by_the_next_worker(
    sandbox, session
):
    """A killed worker takes its monitors with it. A process that waits for a monitor on an eventfd
    does not notice its end."""
    await session.run(["true"])  # and another jail is prepared
    lost_jail = Jail(session._resources.spec, session.cgroup)
    while not (waiting_pids := _list_children(lost_jail._process.pid)):
        assert lost_jail.is_alive
    os.kill(lost_jail._process.pid, signal.SIGKILL)
    lost_jail._process.wait()
    assert Path(f"/proc/{waiting_pids[0]}/status").exists()
    await sandbox.probe()
    async with asyncio.timeout(10):
        while Path(f"/proc/{waiting_pids[0]}/status").exists():
            await asyncio.sleep(0.05)
    assert (await session._next_jail).is_alive  # this prepared jail is not ended


def _list_children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


async def test_a_disk_in_memory_whose_worker_was_killed_before_it_heard_of_it_is_removed(folder):
    disk = TmpfsDisk(folder, "lost", uid=None)
    disk.folder.mkdir()
    disk._pid_file.parent.mkdir()
    command = [*HOLD, HELD, "hold", str(disk.folder), str(4 << 20), "64", str(disk._pid_file)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)  # it continues in the background
    async with asyncio.timeout(10):
        while not (holder := disk._find_process()):
            await asyncio.sleep(0.05)
    disk.remove()
    assert not Path(f"/proc/{holder}/root").exists()
    assert not disk.folder.exists()


async def test_output_is_kept_where_the_model_can_read_it(session, run_bash):
    await session.run(["seq", "100000"], keep_as="one.txt")
    assert (
        await run_bash("wc -l </tmp/outputs/one.txt; id -u; stat -c %u /tmp/outputs/one.txt")
        == "100000\n1000\n1000\n"
    )


async def test_keeping_output_follows_no_link_of_the_agent(session, run_bash, folder):
    target = folder / "target"
    target.mkdir(mode=0o777)
    target.chmod(0o777)
    await run_bash(f"ln -s {target} /tmp/outputs")
    await session.run(["echo", "x"], keep_as="one.txt")
    assert list(target.iterdir()) == []
    (target / "one.txt").write_text("before")
    await run_bash(
        f"rm /tmp/outputs; mkdir /tmp/outputs; ln -s {target}/one.txt /tmp/outputs/one.txt"
    )
    await session.run(["echo", "x"], keep_as="one.txt")
    assert (target / "one.txt").read_text() == "before"
    assert await run_bash("cat /tmp/outputs/one.txt") == "x\n"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "@etc"])
async def test_odd_names_are_refused(name, open_session):
    with pytest.raises(Refused):
        await open_session(name)


async def test_a_missing_base_is_refused_in_a_sentence(sandbox, mirror, root, limits):
    with pytest.raises(Refused, match=r"base commit .* is not in the mirror"):
        await sandbox.create("a", mirror.build_plan(limits, base="0" * 39 + "1"))
    assert sandbox.list_sessions() == []
    assert list_mounts(root) == []


async def test_a_missing_mirror_is_refused_in_a_sentence(sandbox, mirror, folder, limits):
    with pytest.raises(Refused, match="is missing"):
        await sandbox.create("a", mirror.build_plan(limits, repo=str(folder / "nowhere.git")))


async def test_a_corrupt_mirror_is_refused_in_a_sentence(sandbox, mirror, root, open_session):
    (mirror.path / "HEAD").write_text("rubbish\n")
    with pytest.raises(Refused, match="not a repository"):
        await open_session()
    (mirror.path / "HEAD").write_text("ref: refs/heads/main\n")
    for path in (mirror.path / "objects").rglob("*"):
        if path.is_file() and path.stat().st_size > 100:
            path.chmod(0o644)
            path.write_bytes(b"rubbish" * 30)
    with pytest.raises(Refused):
        await open_session()
    assert sandbox.list_sessions() == []
    assert list_mounts(root) == []


@pytest.mark.skipif(not IS_ROOT, reason="only a root worker has another user for its jails")
async def test_a_mirror_that_the_jail_cannot_reach_is_refused_in_a_sentence(
    sandbox, mirror, folder, root, limits
):
    (folder / "closed").mkdir(mode=0o700)
    mirror.path.rename(folder / "closed" / "m.git")
    with pytest.raises(Refused, match="chmod 711"):
        await sandbox.create("a", mirror.build_plan(limits, repo=str(folder / "closed" / "m.git")))
    assert list_mounts(root) == []


@pytest.mark.skipif(not IS_ROOT, reason="an ordinary user has no disk image")
async def test_a_repository_that_does_not_fit_is_refused_in_a_sentence(
    limits, create_mirror, root, sandbox
):
    mirror = create_mirror({f"f{n}": str(n) * 900_000 for n in range(1, 10)})
    with pytest.raises(Refused, match="does not fit"):
        await sandbox.create("a", mirror.build_plan(replace(limits, disk=6 << 20, inodes=500)))
    assert list_mounts(root) == []


@pytest.mark.skipif(not IS_ROOT, reason="an ordinary user has no disk image")
async def test_a_session_is_sealed_although_nothing_is_left_on_its_disk(sandbox, mirror, limits):
    session, _ = await sandbox.create("shop-7-1", mirror.build_plan(limits))
    fill_disk = (
        "i=0; while : >n$i; do i=$((i + 1)); done 2>/dev/null; head -c 900000000 /dev/zero >big"
    )
    await session.run(["bash", "-c", fill_disk])
    await session.seal()
    again, is_new = await sandbox.create("shop-7-1", mirror.build_plan(limits))
    assert not is_new
    await again.destroy()
    await session.destroy()


async def test_a_full_disk_leaves_the_session_usable(session, run_bash):
    await run_bash("head -c 900000000 /dev/zero >big; head -c 900000000 /dev/zero >big2")
    assert "hello" in await run_bash("cat README.md; rm big big2; echo ok >small && cat small")


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's workspaces are in memory")
async def test_a_host_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(
    folder, mirror, limits
):
    (folder / "small").mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100M,mode=711", "small", folder / "small"], check=True
    )
    sandbox = BubblewrapSandbox(folder / "small" / "sandboxes", Path, SandboxOptions(weak=True))
    first, _ = await sandbox.create("first", mirror.build_plan(limits))
    with pytest.raises(Occupied, match="no room for one more workspace: it may take 64 MiB"):
        await sandbox.create("second", mirror.build_plan(limits))
    assert (await first.run(["/bin/cat", "README.md"])).output == b"hello\n"
    subprocess.run(["mount", "-o", "remount,size=300M", folder / "small"], check=True)
    second, _ = await sandbox.create("second", mirror.build_plan(limits))
    result = await first.run(
        ["/bin/sh", "-c", "head -c 40M /dev/zero >some; head -c 40M /dev/zero >more; sync"]
    )
    assert b"No space left" in result.output
    assert (await second.run(["/bin/cat", "README.md"])).output == b"hello\n"
    for session in (first, second):
        await session.destroy()


async def test_what_a_set_up_left_in_the_home_runs_nowhere_before_the_agent(
    sandbox, mirror, limits
):
    """A package may write a git configuration with hooks into the home folder."""
    hostile_command = (
        "mkdir ~/h; printf '#!/bin/sh\\ntouch /tmp/ran; rm -f /keep/index\\n' >~/h/post-checkout;"
        " chmod +x ~/h/*; git config --global core.hooksPath ~/h; git config --global"
        ' core.fsmonitor "$HOME/h/post-checkout"'
    )
    commit = (
        run_git("commit-tree", "-p", mirror.base, "-m", "away", mirror.tree, cwd=mirror.path)
        .decode()
        .strip()
    )
    setup = Setup(commands=(hostile_command,), hosts=(), key="k")
    session, _ = await sandbox.create(
        "shop-7-1", mirror.build_plan(limits, setup=setup, files=commit)
    )
    result = await session.run(["/bin/sh", "-c", "git config --global core.hooksPath; ls /tmp/ran"])
    assert (
        result.output == b"/home/agent/h\nls: cannot access '/tmp/ran': No such file or directory\n"
    )
    await session.destroy()
