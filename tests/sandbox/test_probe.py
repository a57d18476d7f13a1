"""Probes: whether this machine is safe, found out by attempts."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from osiris.core.errors import Refused
from osiris.core.ports.sandbox import Probe, SandboxLimits
from osiris.tools.sandbox.backend import BubblewrapSandbox
from osiris.tools.sandbox.disks.image_disk import ImageDisk
from osiris.tools.sandbox.jail import cgroup
from osiris.tools.sandbox.probes import capabilities


async def test_this_machine_has_a_strong_sandbox(sandbox):
    probes = await sandbox.probe()
    assert [(probe.name, probe.detail) for probe in probes if probe.needed and not probe.ok] == []
    assert len({probe.name for probe in probes}) >= 9


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has no cgroup")
async def test_a_cgroup_that_a_killed_worker_left_of_a_trial_is_gone_after_an_hour(sandbox):
    old, new = (
        cgroup.make_cgroup(f"osiris-probe-0-{name}", SandboxLimits()) for name in ("old", "new")
    )
    for folder in old.folders:
        os.utime(folder, (time.time() - 4000,) * 2)
    await sandbox.probe()
    assert [folder.exists() for folder in (*old.folders, *new.folders)] == [False] * len(
        old.folders
    ) + [True] * len(new.folders)
    assert new.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has no disk image")
async def test_what_a_killed_worker_left_of_a_trial_is_gone_after_an_hour(sandbox, root):
    (root / "@disks").mkdir(exist_ok=True)
    old, new = (ImageDisk(root, f"@trial-{name}", uid=None) for name in ("old", "new"))
    for disk, age in ((old, 4000), (new, 60)):
        disk.folder.mkdir()
        disk.image.touch()
        os.utime(disk.image, (time.time() - age,) * 2)
    await sandbox.probe()
    assert not old.image.exists()
    assert not old.folder.exists()
    assert new.image.exists()
    new.remove()


async def test_without_a_safe_sandbox_nothing_opens(sandbox, mirror, limits, monkeypatch):
    bad = Probe(name="namespaces", ok=False, detail="No permissions", fix="Allow them.")
    monkeypatch.setattr(capabilities, "run_probes", lambda *_, **__: [bad])
    with pytest.raises(
        Refused, match=r"no safe sandbox on this machine: namespaces: No permissions\. Allow them\."
    ):
        await sandbox.create("a", mirror.build_plan(limits))
    assert sandbox.list_sessions() == []


async def test_without_bubblewrap_every_needed_line_fails_and_says_how_to_mend_it(
    sandbox, monkeypatch
):
    monkeypatch.setattr("osiris.tools.sandbox.probes.attempt.BWRAP", "/nonexistent/bwrap")
    monkeypatch.setattr(capabilities, "BWRAP", "/nonexistent/bwrap")
    failed = [probe for probe in await sandbox.probe() if probe.needed and not probe.ok]
    assert {"bubblewrap installed", "namespaces", "private /proc", "python3 inside"} <= {
        probe.name for probe in failed
    }
    assert all(probe.fix for probe in failed)


@pytest.mark.skipif(os.geteuid() != 0, reason="only a root worker has another user for its jails")
async def test_a_data_folder_that_the_jail_cannot_reach_is_named(folder, mirror, limits):
    (folder / "closed").mkdir(mode=0o700)
    sandbox = BubblewrapSandbox(folder / "closed" / "sandboxes", Path)
    with pytest.raises(Refused, match="data folder reachable"):
        await sandbox.create("a", mirror.build_plan(limits))


ORDINARY_USER_SCRIPT = """
import asyncio, os, sys
from pathlib import Path
from osiris.core.ports.sandbox import Plan
from osiris.tools.sandbox.options import SandboxOptions
from osiris.tools.sandbox.backend import BubblewrapSandbox
from osiris.tools.toolbox import SessionTools
async def main():
    folder, mirror, base = sys.argv[1:]
    plan = Plan(repo=mirror, base=base, trusted=base)
    sandbox = BubblewrapSandbox(Path(folder) / "sandboxes", Path, SandboxOptions(weak=True))
    bad = [probe for probe in await sandbox.probe() if not probe.ok and probe.needed]
    assert not bad, bad
    session, new = await sandbox.create("a", plan)
    await session.seal()
    tools = SessionTools(session)
    print((await tools.call_tool("write_file", {"path": "new", "content": "x"})).text)
    result = await session.run(["bash", "-c", "id -u; wc -c </proc/1/environ; git status --short; ls /root /home"])
    print(result.output.decode())
    assert (await session.run(["sleep", "60"], timeout=0.2)).timed_out
    with (await session.export(base)).pack as pack:
        assert len(pack.read()) > 32
    again, new = await sandbox.create("a", plan)
    assert not new
    await again.destroy()
    await session.destroy()
    assert sandbox.list_sessions() == []
asyncio.run(main())
"""


@pytest.mark.long
def test_an_ordinary_user_has_the_same_jail(folder, mirror):
    """The user gets its own copy of the code, because an ordinary user may not be allowed to read
    this checkout."""
    user_folder = folder / "ordinary"
    user_options = {"user": 2000, "group": 2000, "extra_groups": []} if os.geteuid() == 0 else {}
    user_folder.mkdir()
    shutil.copytree(
        Path(__file__).parents[2] / "osiris",
        user_folder / "code" / "osiris",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copytree(
        Path(sys.prefix) / "lib",
        user_folder / "lib",
        symlinks=True,
        ignore=shutil.ignore_patterns("__pycache__", "playwright*", "githubkit*"),
    )
    if user_options:
        subprocess.run(["chown", "-R", "2000:2000", user_folder, mirror.path], check=True)
    packages = next((user_folder / "lib").glob("python3*/site-packages"))
    result = subprocess.run(
        ["/usr/bin/python3", "-c", ORDINARY_USER_SCRIPT, user_folder, mirror.path, mirror.base],
        env={"PYTHONPATH": f"{user_folder}/code:{packages}", "PATH": "/usr/bin:/bin"},
        cwd="/",
        capture_output=True,
        text=True,
        **user_options,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split()[:8] == ["made", "new:", "1", "bytes", "1000", "0", "??", "new"]
    assert "/root" in result.stdout
    assert "agent" in result.stdout
