"""Users of sessions: each session of a root worker runs as another user."""

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
def open_session(sandbox, mirror, limits):
    """Provide a function that opens sessions, as `sandbox.create` does, and seals them."""
    sessions = []

    async def create_and_seal(name, backend=sandbox, **options):
        session, is_new = await backend.create(name, mirror.build_plan(limits, **options))
        await session.seal()
        sessions.append(session)
        return session, is_new

    return create_and_seal


@pytest.fixture
async def remove_sessions(sandbox):
    yield
    for name in sandbox.list_sessions():
        await sandbox.remove(name)


def get_host_user(root: Path, name: str, file: str) -> int:
    """Return the owner of a session's file on the host."""
    return (root / name / file).lstat().st_uid


async def test_two_sessions_have_two_users_and_inside_they_look_alike(
    open_session, root, remove_sessions
):
    for name in ("one", "two"):
        session, _ = await open_session(name)
        result = await session.run(
            ["bash", "-c", "touch mine ~/mine /tmp/mine; id -u; stat -c %u README.md mine"]
        )
        assert result.output == b"1000\n1000\n1000\n"
    uids_of_sessions = [
        {get_host_user(root, name, f"{part}/mine") for part in ("work", "home", "tmp")}
        for name in ("one", "two")
    ]
    assert [len(uids) for uids in uids_of_sessions] == [1, 1]
    assert uids_of_sessions[0] != uids_of_sessions[1]
    assert uids_of_sessions[0] | uids_of_sessions[1] <= set(USERS)


async def test_the_process_of_a_command_has_the_sessions_user(
    open_session, root, find_processes, remove_sessions
):
    session, _ = await open_session("one")
    task = asyncio.create_task(session.run(["bash", "-c", "exec -a osiris-user-of-mine sleep 20"]))
    async with asyncio.timeout(10):
        while not (pids := find_processes("osiris-user-of-mine")):
            await asyncio.sleep(0.05)
    task.cancel()
    uids = {Path(f"/proc/{pid}").stat().st_uid for pid in pids if Path(f"/proc/{pid}").exists()}
    with pytest.raises(asyncio.CancelledError):
        await task
    assert uids <= {session._resources.disk.uid}


async def test_a_session_that_is_found_again_keeps_its_user(open_session, root, remove_sessions):
    first, _ = await open_session("one")
    await first.run(["touch", "mine"])
    uid = get_host_user(root, "one", "work/mine")
    again, is_new = await open_session(
        "one", backend=BubblewrapSandbox(root, Path, SandboxOptions(weak=True))
    )
    await again.run(["bash", "-c", "echo more >>mine; touch other"])
    assert not is_new
    assert get_host_user(root, "one", "work/other") == uid
    await first._discard_next_jail()
    await again._discard_next_jail()


async def test_the_files_of_a_kept_checkout_can_be_changed_and_are_packed_right(
    open_session, mirror, folder, root, remove_sessions
):
    await open_session("one")
    session, _ = await open_session("two")  # uses the same checkout as "one"
    script = (
        "echo more >>README.md; chmod 755 src/app.py; git mv src lib; rm run.sh; echo new >new; git"
        " status -s"
    )
    result = await session.run(["bash", "-c", script])
    assert result.exit_code == 0, result.output
    assert get_host_user(root, "two", "work/README.md") == session._resources.disk.uid
    tree = mirror.import_pack(await session.export(mirror.base), folder)
    assert tree == {
        b"README.md": (b"100644", b"hello\nmore\n"),
        b"lib/app.py": (b"100755", b"print('one')\n"),
        b"new": (b"100644", b"new\n"),
    }
    other, _ = await open_session("three")
    assert (await other.run(["git", "status", "--short"])).output == b""


async def test_the_session_that_made_a_checkout_has_no_part_in_it_any_more(
    open_session, root, remove_sessions
):
    session, _ = await open_session("one")
    [checkout] = [
        Path(line.split()[1])
        for line in Path("/proc/mounts").read_text().splitlines()
        if str(root) in line and "/@checkout-" in line.split()[1] and _is_checkout_of(session, line)
    ]
    assert read_owner(root / "@disks" / f"{checkout.name}.img") == SHARED
    assert (checkout / "work").stat().st_uid != session._resources.disk.uid


def _is_checkout_of(session, line):
    return (session._resources.disk.host_path / "over").read_text() == Path(line.split()[1]).name


async def test_where_the_kernel_cannot_all_sessions_run_as_one_user_and_that_is_said(
    monkeypatch, folder, mirror, limits
):
    def refuse(*_):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mounts, "mount_with_owner", refuse)
    sandbox = BubblewrapSandbox(folder / "sandboxes", Path, SandboxOptions(weak=True))
    [probe] = [probe for probe in await sandbox.probe() if probe.name == capabilities.APART]
    assert (probe.ok, probe.needed) == (False, False)
    assert probe.fix
    for name in ("one", "two"):
        session, _ = await sandbox.create(name, mirror.build_plan(limits))
        await session.run(["touch", "mine"])
        assert get_host_user(folder / "sandboxes", name, "work/mine") == SHARED
        assert capabilities.APART in session.prepared.weakness
    for name in ("one", "two"):
        await sandbox.remove(name)


async def test_where_no_device_files_can_be_made_jails_have_those_of_the_host_and_that_is_said(
    monkeypatch, folder, mirror, limits
):
    """As in a container without CAP_MKNOD."""

    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "mknod", refuse)
    sandbox = BubblewrapSandbox(folder / "sandboxes", Path, SandboxOptions(weak=True))
    [probe] = [probe for probe in await sandbox.probe() if probe.name == capabilities.APART]
    assert (probe.ok, probe.detail) == (True, "shared: /dev")
    session, _ = await sandbox.create("one", mirror.build_plan(limits))
    result = await session.run(
        [
            "bash",
            "-c",
            "echo x >/dev/null; head -c 4 /dev/urandom | wc -c; touch /dev/x || echo closed",
        ]
    )
    assert result.output.splitlines()[0] == b"4"
    assert result.output.splitlines()[-1] == b"closed"
    await session.destroy()
    assert f"{folder}/sandboxes/one" not in Path("/proc/mounts").read_text()


async def test_nothing_is_left_mounted_of_a_session(open_session, root, sandbox):
    session, _ = await open_session("one")
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
    """Otherwise a mount is made after its disk was removed, and the folder can never be removed
    again."""
    await sandbox.probe()
    loop = asyncio.get_running_loop()
    mount_devices = mounts.mount_devices
    reached = asyncio.Event()

    def mount_late(*args: object) -> None:
        loop.call_soon_threadsafe(reached.set)
        cancelled.wait(10)
        mount_devices(*args)

    cancelled = threading.Event()
    monkeypatch.setattr(mounts, "mount_devices", mount_late)
    task = asyncio.create_task(sandbox.create("one", mirror.build_plan(limits)))
    await reached.wait()
    task.cancel()
    await asyncio.sleep(0.1)  # time in which the cancelled task would remove the disk
    assert (root / "one").is_mount()
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert f"{root}/one" not in Path("/proc/mounts").read_text()
    assert not (root / "one").exists()
    session, is_new = await sandbox.create("one", mirror.build_plan(limits))
    assert is_new
    await session.destroy()


async def test_a_folder_in_which_something_is_mounted_is_removed(root, sandbox):
    """A worker that was killed between two mounts leaves such a folder."""
    (root / "one" / "dev").mkdir(parents=True)
    mounts.mount_devices(root / "one" / "dev", DEVPTS)
    await sandbox.remove("one")
    assert not (root / "one").exists()


async def test_terminals_work_and_are_the_sessions_own(open_session, remove_sessions):
    session, _ = await open_session("one")
    count_terminals = (
        "import os\nfds = []\ntry:\n  while True: fds += os.openpty()\nexcept OSError:"
        " print(len(fds) // 2)"
    )
    result = await session.run(
        [
            "bash",
            "-c",
            f"script -qc 'tty; echo said' /dev/null; python3 -c '{count_terminals}'; ls /dev/pts",
        ]
    )
    assert result.output.split() == [b"/dev/pts/0", b"said", b"64", b"ptmx"]


# ── claims ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def claims_folder(tmp_path, monkeypatch):
    """Provide a separate folder of claims, with three users that no session of this machine has."""
    monkeypatch.setattr(users, "CLAIMS", tmp_path / "claims")
    first_uid = 1_000_000 + 3 * os.getpid()
    monkeypatch.setattr(users, "USERS", tuple(range(first_uid, first_uid + 3)))
    return tmp_path


def create_image_folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_no_two_images_have_one_user_in_one_folder_or_in_two(claims_folder):
    first, second = (SessionUsers(create_image_folder(claims_folder / name)) for name in ("a", "b"))
    uids = [
        first.claim_user(claims_folder / "a/1.img"),
        second.claim_user(claims_folder / "b/1.img"),
        first.claim_user(claims_folder / "a/2.img"),
    ]
    assert len(set(uids)) == 3
    assert uids == [read_owner(claims_folder / name) for name in ("a/1.img", "b/1.img", "a/2.img")]
    with pytest.raises(Unavailable, match="no user for one more"):
        second.claim_user(claims_folder / "b/2.img")


def test_a_user_is_taken_again_only_when_its_image_and_its_processes_are_gone(claims_folder):
    session_users = SessionUsers(create_image_folder(claims_folder / "a"))
    uid, *_ = [session_users.claim_user(claims_folder / f"a/{n}.img") for n in range(3)]
    command = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(b"x")
        process.stdin.flush()
        assert process.stdout.read(1) == b"x"
        (claims_folder / "a/0.img").unlink()
        with pytest.raises(Unavailable):
            session_users.claim_user(claims_folder / "a/3.img")
        process.stdin.close()
    assert session_users.claim_user(claims_folder / "a/3.img") == uid


def test_a_name_that_is_made_anew_does_not_hold_two_users(claims_folder):
    session_users = SessionUsers(create_image_folder(claims_folder / "a"))
    image = claims_folder / "a/1.img"
    for _ in range(9):
        session_users.claim_user(image)
        image.unlink()
    assert len({session_users.claim_user(claims_folder / f"a/{n}.img") for n in range(3)}) == 3


def test_a_released_image_holds_no_user(claims_folder):
    session_users = SessionUsers(create_image_folder(claims_folder / "a"))
    uids = {session_users.claim_user(claims_folder / f"a/{n}.img") for n in range(3)}
    users.release_user(claims_folder / "a/0.img")
    assert session_users.claim_user(claims_folder / "a/3.img") in uids


def test_what_sessions_have_is_claimed_again_after_the_machine_was_started_anew(claims_folder):
    uid_before = SessionUsers(create_image_folder(claims_folder / "a")).claim_user(
        claims_folder / "a/1.img"
    )
    subprocess.run(["rm", "-r", users.CLAIMS], check=True)
    later_users = SessionUsers(claims_folder / "a")
    assert uid_before not in [later_users.claim_user(claims_folder / f"a/{n}.img") for n in (2, 3)]
    with pytest.raises(Unavailable):
        later_users.claim_user(claims_folder / "a/4.img")


def test_users_are_clear_of_those_of_systemd_and_of_the_proxy():
    assert not set(USERS) & {SHARED, 61999, *range(61184, 65520), *range(60578)}
