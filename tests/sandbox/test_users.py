"""Each session of a root worker runs as a user of its own."""

import asyncio
import os
import subprocess
import threading
from pathlib import Path

import pytest

from osiris.core.errors import Unavailable
from osiris.tools.sandbox import users
from osiris.tools.sandbox.backend import BubblewrapSandbox
from osiris.tools.sandbox.disks import mounts
from osiris.tools.sandbox.disks.disk import DEVPTS
from osiris.tools.sandbox.options import SandboxOptions
from osiris.tools.sandbox.probes import capabilities
from osiris.tools.sandbox.users import SHARED, USERS, SessionUsers, read_owner

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has no other users")


@pytest.fixture
def made(sandbox, mirror, limits):
    """Makes sessions, and ends them after the test."""
    ended = []

    async def make(name, box=sandbox, **more):
        session, is_new = await box.create(name, mirror.plan(limits, **more))
        await session.seal()
        ended.append(session)
        return session, is_new

    return make


@pytest.fixture
async def ending(sandbox):
    yield
    for name in sandbox.list_sessions():
        await sandbox.remove(name)


def host_user(root: Path, name: str, file: str) -> int:
    """Who owns a file of a session on the host."""
    return (root / name / file).lstat().st_uid


async def test_two_sessions_have_two_users_and_inside_they_look_alike(made, root, ending):
    for name in ("one", "two"):
        session, _ = await made(name)
        result = await session.run(
            ["bash", "-c", "touch mine ~/mine /tmp/mine; id -u; stat -c %u README.md mine"]
        )
        assert result.output == b"1000\n1000\n1000\n"
    found = [
        {host_user(root, name, f"{part}/mine") for part in ("work", "home", "tmp")}
        for name in ("one", "two")
    ]
    assert [len(uids) for uids in found] == [1, 1]
    assert found[0] != found[1]
    assert found[0] | found[1] <= set(USERS)


async def test_the_process_of_a_command_has_the_sessions_user(made, root, living, ending):
    session, _ = await made("one")
    running = asyncio.create_task(
        session.run(["bash", "-c", "exec -a osiris-user-of-mine sleep 20"])
    )
    async with asyncio.timeout(10):
        while not (found := living("osiris-user-of-mine")):
            await asyncio.sleep(0.05)
    running.cancel()
    uids = {Path(f"/proc/{pid}").stat().st_uid for pid in found if Path(f"/proc/{pid}").exists()}
    with pytest.raises(asyncio.CancelledError):
        await running
    assert uids <= {session._resources.disk.uid}


async def test_a_session_that_is_found_again_keeps_its_user(made, root, ending):
    first, _ = await made("one")
    await first.run(["touch", "mine"])
    uid = host_user(root, "one", "work/mine")
    again, is_new = await made("one", box=BubblewrapSandbox(root, Path, SandboxOptions(weak=True)))
    await again.run(["bash", "-c", "echo more >>mine; touch other"])
    assert not is_new
    assert host_user(root, "one", "work/other") == uid
    await first._discard_next_jail()
    await again._discard_next_jail()


async def test_the_files_of_a_kept_checkout_can_be_changed_and_are_packed_right(
    made, mirror, place, root, ending
):
    await made("one")
    session, _ = await made("two")  # laid over what "one" was laid over
    change = (
        "echo more >>README.md; chmod 755 src/app.py; git mv src lib; rm run.sh; echo new >new; git"
        " status -s"
    )
    result = await session.run(["bash", "-c", change])
    assert result.exit_code == 0, result.output
    assert host_user(root, "two", "work/README.md") == session._resources.disk.uid
    found = mirror.take(await session.export(mirror.base), place)
    assert found == {
        b"README.md": (b"100644", b"hello\nmore\n"),
        b"lib/app.py": (b"100755", b"print('one')\n"),
        b"new": (b"100644", b"new\n"),
    }
    other, _ = await made("three")
    assert (await other.run(["git", "status", "--short"])).output == b""


async def test_the_session_that_made_a_checkout_has_no_part_in_it_any_more(made, root, ending):
    session, _ = await made("one")
    [layer] = [
        Path(line.split()[1])
        for line in Path("/proc/mounts").read_text().splitlines()
        if str(root) in line and "/@checkout-" in line.split()[1] and _is_of(session, line)
    ]
    assert read_owner(root / "@disks" / f"{layer.name}.img") == SHARED
    assert (layer / "work").stat().st_uid != session._resources.disk.uid


def _is_of(session, line):
    return (session._resources.disk.host_path / "over").read_text() == Path(line.split()[1]).name


async def test_where_the_kernel_cannot_all_sessions_run_as_one_user_and_that_is_said(
    monkeypatch, place, mirror, limits
):
    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mounts, "mount_with_owner", refuse)
    sandbox = BubblewrapSandbox(place / "sandboxes", Path, SandboxOptions(weak=True))
    [probe] = [probe for probe in await sandbox.probe() if probe.name == capabilities.APART]
    assert (probe.ok, probe.needed) == (False, False)
    assert probe.fix
    for name in ("one", "two"):
        session, _ = await sandbox.create(name, mirror.plan(limits))
        await session.run(["touch", "mine"])
        assert host_user(place / "sandboxes", name, "work/mine") == SHARED
        assert capabilities.APART in session.prepared.weakness
    for name in ("one", "two"):
        await sandbox.remove(name)


async def test_where_no_device_files_can_be_made_jails_have_those_of_the_host_and_that_is_said(
    monkeypatch, place, mirror, limits
):
    """As in a container without CAP_MKNOD."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "mknod", refuse)
    sandbox = BubblewrapSandbox(place / "sandboxes", Path, SandboxOptions(weak=True))
    [probe] = [probe for probe in await sandbox.probe() if probe.name == capabilities.APART]
    assert (probe.ok, probe.detail) == (True, "shared: /dev")
    session, _ = await sandbox.create("one", mirror.plan(limits))
    told = await session.run(
        [
            "bash",
            "-c",
            "echo x >/dev/null; head -c 4 /dev/urandom | wc -c; touch /dev/x || echo closed",
        ]
    )
    assert told.output.splitlines()[0] == b"4"
    assert told.output.splitlines()[-1] == b"closed"
    await session.destroy()
    assert f"{place}/sandboxes/one" not in Path("/proc/mounts").read_text()


async def test_nothing_is_left_mounted_of_a_session(made, root, sandbox):
    session, _ = await made("one")
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    assert {str(root / "one" / part) for part in ("usr", "etc", "dev", "dev/pts", "work")} <= set(
        mounted
    )
    assert str(root / "one" / "lower") not in mounted
    await session.destroy()
    assert f"{root}/one" not in Path("/proc/mounts").read_text()


async def test_cancelled_while_its_disk_is_made_a_session_leaves_nothing_and_is_made_again(
    monkeypatch, sandbox, root, mirror, limits
):
    """Else a mount comes after its disk is gone, and the folder can never be removed again."""
    await sandbox.probe()
    loop = asyncio.get_running_loop()
    real = mounts.mount_devices
    reached = asyncio.Event()

    def mount_late(*args: object) -> None:
        loop.call_soon_threadsafe(reached.set)
        cancelled.wait(10)
        real(*args)

    cancelled = threading.Event()
    monkeypatch.setattr(mounts, "mount_devices", mount_late)
    making = asyncio.create_task(sandbox.create("one", mirror.plan(limits)))
    await reached.wait()
    making.cancel()
    await asyncio.sleep(0.1)  # time in which it would remove the disk
    assert (root / "one").is_mount()
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert f"{root}/one" not in Path("/proc/mounts").read_text()
    assert not (root / "one").exists()
    session, is_new = await sandbox.create("one", mirror.plan(limits))
    assert is_new
    await session.destroy()


async def test_a_folder_in_which_something_is_mounted_is_removed(root, sandbox):
    """As a worker leaves it that is killed between two mounts."""
    (root / "one" / "dev").mkdir(parents=True)
    mounts.mount_devices(root / "one" / "dev", DEVPTS)
    await sandbox.remove("one")
    assert not (root / "one").exists()


async def test_terminals_work_and_are_the_sessions_own(made, ending):
    one, _ = await made("one")
    count = (
        "import os\nfds = []\ntry:\n  while True: fds += os.openpty()\nexcept OSError:"
        " print(len(fds) // 2)"
    )
    told = await one.run(
        ["bash", "-c", f"script -qc 'tty; echo said' /dev/null; python3 -c '{count}'; ls /dev/pts"]
    )
    assert told.output.split() == [b"/dev/pts/0", b"said", b"64", b"ptmx"]


# ── claims ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def claims(tmp_path, monkeypatch):
    """A folder of claims of its own, with three users that no session of this machine has."""
    monkeypatch.setattr(users, "CLAIMS", tmp_path / "claims")
    first = 1_000_000 + 3 * os.getpid()
    monkeypatch.setattr(users, "USERS", tuple(range(first, first + 3)))
    return tmp_path


def images(place: Path) -> Path:
    place.mkdir()
    return place


def test_no_two_images_have_one_user_in_one_folder_or_in_two(claims):
    first, second = (SessionUsers(images(claims / name)) for name in ("a", "b"))
    found = [
        first.claim_user(claims / "a/1.img"),
        second.claim_user(claims / "b/1.img"),
        first.claim_user(claims / "a/2.img"),
    ]
    assert len(set(found)) == 3
    assert found == [read_owner(claims / name) for name in ("a/1.img", "b/1.img", "a/2.img")]
    with pytest.raises(Unavailable, match="no user for one more"):
        second.claim_user(claims / "b/2.img")


def test_a_user_is_taken_again_only_when_its_image_and_its_processes_are_gone(claims):
    some = SessionUsers(images(claims / "a"))
    uid, *_ = [some.claim_user(claims / f"a/{n}.img") for n in range(3)]
    words = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "cat"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"
        (claims / "a/0.img").unlink()
        with pytest.raises(Unavailable):
            some.claim_user(claims / "a/3.img")
        process.stdin.close()
    assert some.claim_user(claims / "a/3.img") == uid


def test_a_name_that_is_made_anew_does_not_hold_two_users(claims):
    some = SessionUsers(images(claims / "a"))
    image = claims / "a/1.img"
    for _ in range(9):
        some.claim_user(image)
        image.unlink()
    assert len({some.claim_user(claims / f"a/{n}.img") for n in range(3)}) == 3


def test_a_released_image_holds_no_user(claims):
    some = SessionUsers(images(claims / "a"))
    found = {some.claim_user(claims / f"a/{n}.img") for n in range(3)}
    users.release_user(claims / "a/0.img")
    assert some.claim_user(claims / "a/3.img") in found


def test_what_sessions_have_is_claimed_again_after_the_machine_was_started_anew(claims):
    had = SessionUsers(images(claims / "a")).claim_user(claims / "a/1.img")
    subprocess.run(["rm", "-r", users.CLAIMS], check=True)
    anew = SessionUsers(claims / "a")
    assert had not in [anew.claim_user(claims / f"a/{n}.img") for n in (2, 3)]
    with pytest.raises(Unavailable):
        anew.claim_user(claims / "a/4.img")


def test_users_are_clear_of_those_of_systemd_and_of_the_proxy():
    assert not set(USERS) & {SHARED, 61999, *range(61184, 65520), *range(60578)}
