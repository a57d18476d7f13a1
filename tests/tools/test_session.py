"""Sessions: made, found again, thrown away, and never half there."""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from osiris.errors import Refused, TooSlow
from osiris.tools.sandbox import Bubblewrap

ROOT = os.geteuid() == 0


async def open_(sandbox, mirror, name="shop-7-1"):
    session, is_new = await sandbox.open(name, mirror=mirror.path, base=mirror.base)
    await session.seal()
    return session, is_new


def mounts(root: Path) -> list[str]:
    return [line for line in Path("/proc/mounts").read_text().splitlines() if str(root) in line]


async def test_a_session_is_a_clone_on_its_own_branch(session, bash, mirror):
    said = await bash("git rev-parse HEAD; git branch --show-current; git status --short; git log -1 --format=%s")
    assert said.split() == [mirror.base, "work", "base"]


async def test_opening_again_finds_the_work(sandbox, mirror):
    first, is_new = await open_(sandbox, mirror)
    assert is_new
    await first.run(["bash", "-c", "echo mine >mine; echo note >~/note"])
    second, is_new = await open_(sandbox, mirror)
    assert not is_new
    assert (await second.run(["bash", "-c", "cat mine ~/note"])).output == b"mine\nnote\n"
    await second.close()
    await first.close()


async def test_closing_leaves_nothing(sandbox, mirror, root):
    session, _ = await open_(sandbox, mirror)
    assert sandbox.names() == ["shop-7-1"]
    await session.run(["bash", "-c", "mkdir -p $(printf 'd/%.0s' $(seq 1500)); chmod 0 d"])
    await session.close()
    await session.close()
    assert sandbox.names() == []
    assert mounts(root) == []
    assert list(root.rglob("*.img")) == []
    with pytest.raises(Refused, match="closed"):
        await session.run(["true"])


async def test_a_checkout_that_takes_too_long_leaves_nothing_and_is_tried_again_later(root, mirror, limits):
    sandbox = Bubblewrap(root, limits=replace(limits, open_seconds=0.001))
    with pytest.raises(TooSlow, match=r"took longer than 0\.001 seconds"):
        await sandbox.open("shop-7-1", mirror=mirror.path, base=mirror.base)
    assert (sandbox.names(), mounts(root)) == ([], [])


async def test_removing_by_name_is_fine_twice(sandbox, mirror, root):
    await open_(sandbox, mirror)
    await sandbox.remove("shop-7-1")
    await sandbox.remove("shop-7-1")
    assert sandbox.names() == []
    assert mounts(root) == []


async def test_a_session_that_was_never_sealed_is_made_anew(sandbox, mirror):
    session, _ = await sandbox.open("shop-7-1", mirror=mirror.path, base=mirror.base)
    await session.run(["touch", "mine"])
    again, is_new = await open_(sandbox, mirror)
    assert is_new
    assert (await again.run(["ls", "mine"])).exit_code == 2
    await again.close()
    await session.close()


async def test_the_agent_cannot_forge_the_marker(session, bash, root):
    await bash("touch /workspace/ready /tmp/ready ~/ready; touch /keep/ready ../keep/ready")
    keep = root / "shop-7-1" / "keep"
    assert sorted(path.name for path in keep.iterdir()) == ["index", "ready"]
    assert keep.stat().st_uid == os.geteuid()


@pytest.mark.skipif(not ROOT, reason="an ordinary user has no disk image")
async def test_a_session_whose_disk_was_put_away_is_mounted_again(sandbox, mirror, root):
    session, _ = await open_(sandbox, mirror)
    await session.run(["touch", "mine"])
    await session._stand_down()
    subprocess.run(["umount", root / "shop-7-1"], check=True)
    async with asyncio.timeout(10):  # the kernel lets go of a disk only when the last jail's namespace has gone
        while not sandbox._disk("shop-7-1")._is_clean():
            await asyncio.sleep(0.02)
    again, is_new = await open_(sandbox, mirror)
    assert not is_new
    assert (await again.run(["ls", "mine"])).exit_code == 0
    await again.close()


WORKER = """
import asyncio, sys
from pathlib import Path
from osiris.tools.sandbox import Bubblewrap
async def main():
    root, mirror, base, word = sys.argv[1:]
    session, _ = await Bubblewrap(Path(root)).open("shop-7-1", mirror=Path(mirror), base=base)
    await session.seal()
    await session.run(["touch", "/workspace/first"])
    running = asyncio.create_task(session.run(["bash", "-c", f"setsid sleep {word} & echo begun; sleep {word}"]))
    print("begun", flush=True)
    await running
asyncio.run(main())
"""


async def test_a_killed_worker_leaves_no_process_and_its_session_goes_on(sandbox, mirror, living, root):
    word = "987654321.25"
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, root, mirror.path, mirror.base, word],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with worker:
        assert worker.stdout.readline() == b"begun\n"
        while not living(f"sleep\0{word}"):
            assert worker.poll() is None
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    session, is_new = await open_(sandbox, mirror)
    assert not is_new
    for _ in range(1000):
        if not living(f"sleep\0{word}"):
            break
        await session.run(["true"])
    assert living(f"sleep\0{word}") == []
    assert (await session.run(["ls", "first"])).exit_code == 0
    await session.close()


async def test_output_is_kept_where_the_model_can_read_it(session, bash):
    await session.run(["seq", "100000"], keep_as="one.txt")
    assert await bash("wc -l </tmp/outputs/one.txt; id -u; stat -c %u /tmp/outputs/one.txt") == "100000\n1000\n1000\n"


async def test_keeping_output_follows_no_link_of_the_agent(session, bash, place):
    target = place / "target"
    target.mkdir(mode=0o777)
    target.chmod(0o777)
    await bash(f"ln -s {target} /tmp/outputs")
    await session.run(["echo", "x"], keep_as="one.txt")
    assert list(target.iterdir()) == []
    (target / "one.txt").write_text("before")
    await bash(f"rm /tmp/outputs; mkdir /tmp/outputs; ln -s {target}/one.txt /tmp/outputs/one.txt")
    await session.run(["echo", "x"], keep_as="one.txt")
    assert (target / "one.txt").read_text() == "before"
    assert await bash("cat /tmp/outputs/one.txt") == "x\n"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "@etc"])
async def test_odd_names_are_refused(sandbox, mirror, name):
    with pytest.raises(Refused):
        await open_(sandbox, mirror, name)


async def test_a_missing_base_is_refused_in_a_sentence(sandbox, mirror, root):
    with pytest.raises(Refused, match=r"base commit .* is not in the mirror"):
        await sandbox.open("a", mirror=mirror.path, base="0" * 39 + "1")
    assert sandbox.names() == []
    assert mounts(root) == []


async def test_a_missing_mirror_is_refused_in_a_sentence(sandbox, mirror, place):
    with pytest.raises(Refused, match="is missing"):
        await sandbox.open("a", mirror=place / "nowhere.git", base=mirror.base)


async def test_a_corrupt_mirror_is_refused_in_a_sentence(sandbox, mirror, root):
    (mirror.path / "HEAD").write_text("rubbish\n")
    with pytest.raises(Refused, match="not a repository"):
        await open_(sandbox, mirror)
    (mirror.path / "HEAD").write_text("ref: refs/heads/main\n")
    for thing in (mirror.path / "objects").rglob("*"):
        if thing.is_file() and thing.stat().st_size > 100:
            thing.chmod(0o644)
            thing.write_bytes(b"rubbish" * 30)
    with pytest.raises(Refused):
        await open_(sandbox, mirror)
    assert sandbox.names() == []
    assert mounts(root) == []


@pytest.mark.skipif(not ROOT, reason="only a root worker has another user for its jails")
async def test_a_mirror_that_the_jail_cannot_reach_is_refused_in_a_sentence(sandbox, mirror, place, root):
    (place / "closed").mkdir(mode=0o700)
    mirror.path.rename(place / "closed" / "m.git")
    with pytest.raises(Refused, match="chmod 711"):
        await sandbox.open("a", mirror=place / "closed" / "m.git", base=mirror.base)
    assert mounts(root) == []


@pytest.mark.skipif(not ROOT, reason="an ordinary user has no disk image")
async def test_a_repository_that_does_not_fit_is_refused_in_a_sentence(limits, mirror_of, root):
    from dataclasses import replace

    mirror = mirror_of({f"f{n}": str(n) * 900_000 for n in range(1, 10)})
    sandbox = Bubblewrap(root, limits=replace(limits, disk=6 << 20, inodes=500))
    with pytest.raises(Refused, match="does not fit"):
        await open_(sandbox, mirror)
    assert mounts(root) == []


@pytest.mark.skipif(not ROOT, reason="an ordinary user has no disk image")
async def test_a_session_is_sealed_although_nothing_is_left_on_its_disk(sandbox, mirror):
    session, _ = await sandbox.open("shop-7-1", mirror=mirror.path, base=mirror.base)
    fill = "i=0; while : >n$i; do i=$((i + 1)); done 2>/dev/null; head -c 900000000 /dev/zero >big"
    await session.run(["bash", "-c", fill])
    await session.seal()
    again, is_new = await sandbox.open("shop-7-1", mirror=mirror.path, base=mirror.base)
    assert not is_new
    await again.close()
    await session.close()


async def test_a_full_disk_leaves_the_session_usable(session, bash):
    await bash("head -c 900000000 /dev/zero >big; head -c 900000000 /dev/zero >big2")
    assert "hello" in await bash("cat README.md; rm big big2; echo ok >small && cat small")
