"""Commands in the jail: what they can see, reach and use."""

import asyncio
import hashlib
import os
import resource
import secrets
import subprocess
import time
from pathlib import Path

import pytest

from osiris.core.errors import Unavailable
from osiris.tools.sandbox.backend import BubblewrapSandbox
from osiris.tools.sandbox.jail import process
from osiris.tools.sandbox.jail.cgroup import Cgroup
from osiris.tools.sandbox.jail.process import run_once
from osiris.tools.sandbox.options import SandboxOptions

IS_ROOT = os.geteuid() == 0
SILENT_BWRAP = """#!/usr/bin/python3 -I
import os, subprocess
subprocess.Popen(["/bin/sh", "-c", "sleep 0.1; : >{0}/seen; for n in $(seq 300); do [ -e {0}/go ] || sleep 0.01; done"])
os.closerange(3, 100)
"""
needs_root = pytest.mark.skipif(
    not IS_ROOT, reason="an ordinary user's jail has no cgroup and no disk image"
)


async def test_a_command_runs_in_the_workspace_as_an_ordinary_user(run_bash):
    assert (await run_bash("pwd; id -u; cat README.md")).split() == ["/workspace", "1000", "hello"]


async def test_the_environment_is_ours_alone(run_bash, monkeypatch):
    monkeypatch.setenv("WORKER_SECRET", "canary-51")
    output = await run_bash(
        "env; cat /proc/*/environ | tr '\\0' '\\n'; cat /proc/*/cmdline | tr '\\0' '\\n'"
    )
    assert "HOME=/home/agent" in output
    assert "canary-51" not in output
    assert "sandboxes" not in output


async def test_pid_1_has_no_environment(run_bash):
    assert await run_bash("wc -c </proc/1/environ") == "0\n"


async def test_the_files_of_the_host_are_not_there(run_bash, folder, root):
    (folder / "canary").write_text("secret")
    output = await run_bash(
        f"cat {folder}/canary /etc/shadow; ls -d /root /work /home/* /var /run /sys /opt /srv"
    )
    assert "secret" not in output
    assert output.splitlines()[-1] == "/home/agent"


async def test_only_the_session_can_be_written(run_bash):
    output = await run_bash(
        "for d in / /usr /etc /dev /proc /base.git /home; do touch $d/x && echo wrote $d; done"
        " 2>/dev/null"
    )
    assert output == ""
    assert await run_bash("touch /workspace/x /tmp/x ~/x /dev/shm/x && echo wrote") == "wrote\n"


async def test_no_descriptor_of_the_worker_comes_along(run_python):
    output = await run_python(
        "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:4],"
        " len(os.listdir('/proc/self/fd')))"
    )
    assert output == "[0, 1, 2, 3] 4\n"  # the fourth is the listing itself


async def test_the_network_is_closed_but_localhost_works(run_python):
    output = await run_python(
        "import socket\n"
        "print([name for _, name in socket.if_nameindex() if name == 'lo'])\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "client = socket.create_connection(server.getsockname(), 2)\n"
        "server.accept()[0].sendall(b'heard')\n"
        "print(client.recv(9))\n"
        "try: socket.create_connection(('1.1.1.1', 53), 2)\n"
        "except OSError as error: print(error)\n"
    )
    assert output.splitlines() == ["['lo']", "b'heard'", "[Errno 101] Network is unreachable"]


async def test_no_server_of_the_host_can_be_reached(run_python):
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    output = await run_python(
        f"import socket\ntry: socket.create_connection(('127.0.0.1', {port}), 2)\nexcept OSError as"
        " e: print(e)"
    )
    server.close()
    assert "refused" in output


async def test_the_settings_of_the_kernel_cannot_be_written(run_bash):
    for path in (
        "/proc/sys/kernel/core_pattern",
        "/proc/sysrq-trigger",
        "/proc/sys/vm/drop_caches",
    ):
        assert "open" not in await run_bash(f"(: >>{path}) 2>/dev/null && echo open")


async def test_dangerous_system_calls_are_refused(run_python):
    output = await run_python(
        "import ctypes, os, socket\nlibc = ctypes.CDLL(None, use_errno=True)\ndef call(*words):\n  "
        "  done = libc.syscall(*words)\n    print(words[0], 'DONE' if done >= 0 else"
        " ctypes.get_errno())\nfor family in (40, 38, 17):\n    try: socket.socket(family,"
        " socket.SOCK_RAW if family < 40 else socket.SOCK_STREAM); print('OPEN')\n    except"
        " OSError as error: print(error.errno)\ncall(272, 0x10000000); call(165, b'x', b'/tmp',"
        " b'tmpfs', 0, 0); call(161, b'/tmp'); call(435, 0, 0)\ncall(250, 0, -3, 0); call(425, 4,"
        " 0); call(101, 16, 1, 0, 0); call(600)\n"
    )
    assert output.split() == [
        *("97",) * 3,
        *[
            "272",
            "1",
            "165",
            "1",
            "161",
            "1",
            "435",
            "38",
            "250",
            "1",
            "425",
            "1",
            "101",
            "1",
            "600",
            "38",
        ],
    ]


async def test_unshare_and_mount_and_a_nested_jail_are_refused(run_bash):
    output = await run_bash(
        "unshare -U true && echo in; mount -t tmpfs x /tmp && echo in; bwrap --ro-bind / / true &&"
        " echo in"
    )
    assert "in\n" not in output


async def test_capabilities_are_gone(run_bash):
    output = await run_bash("grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status")
    assert {line.split()[1] for line in output.splitlines() if "Cap" in line} == {
        "0000000000000000"
    }
    assert "NoNewPrivs:\t1" in output
    assert "Seccomp:\t2" in output


async def test_standard_input_arrives_whole(session):
    data = os.urandom(3 << 20)
    result = await session.run(["sha256sum"], stdin=data)
    assert result.output.split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_a_command_that_does_not_read_its_input_ends_well(session):
    assert (await session.run(["true"], stdin=b"x" * (1 << 20))).exit_code == 0


async def test_scripts_can_open_their_streams_by_name(run_bash):
    output = await run_bash(
        "echo one >/dev/stdout; echo two >/dev/stderr; cat /dev/stdin", stdin=b"three\n"
    )
    assert output == "one\ntwo\nthree\n"


async def test_exit_codes_come_through(session):
    codes = [
        (await session.run(["bash", "-c", script])).exit_code
        for script in ("exit 3", "kill -9 $$", "nosuchprogram")
    ]
    assert codes == [3, 137, 127]


async def test_a_flood_of_output_stays_flat(session):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = await session.run(
        ["bash", "-c", "echo first; head -c 1000000000 /dev/zero; echo last"], keep_as="all"
    )
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert result.total == 1_000_000_011
    assert result.output.startswith(b"first\n")
    assert result.output.endswith(b"last\n")
    assert len(result.output) < 300_000
    assert growth < 60_000  # KiB


async def test_a_timeout_kills_a_tree_that_ignores_being_asked(session, find_processes):
    word = f"9{secrets.randbelow(10**8):08}"
    script = (
        f"trap '' TERM HUP; (setsid nohup sleep {word} >/dev/null 2>&1 &); setsid sleep {word} &"
        f" sleep {word}"
    )
    began = time.monotonic()
    result = await session.run(["bash", "-c", script], timeout=0.4)
    assert result.timed_out
    assert result.exit_code is None
    assert time.monotonic() - began < 20
    assert find_processes(word) == []


async def test_a_daemon_that_holds_the_output_does_not_delay_the_answer(session, find_processes):
    word = f"9{secrets.randbelow(10**8):08}"
    began = time.monotonic()
    result = await session.run(
        ["bash", "-c", f"setsid sleep {word} & disown; echo done"], timeout=30
    )
    assert result.output == b"done\n"
    assert time.monotonic() - began < 20
    assert find_processes(word) == []


async def test_a_command_that_closes_its_output_still_meets_the_limit(session):
    result = await session.run(["bash", "-c", "exec >&- 2>&-; sleep 60"], timeout=0.3)
    assert result.timed_out


async def test_cancelling_kills_what_runs(session, find_processes, folder):
    word = f"9{secrets.randbelow(10**8):08}"
    task = asyncio.create_task(session.run(["bash", "-c", f"touch begun; sleep {word}"]))
    while not find_processes(word):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await process.wait_for_jails()
    assert find_processes(word) == []
    assert (await session.run(["echo", "again"])).output == b"again\n"


async def test_a_fork_bomb_stays_small(run_python):
    output = await run_python(
        "import os, time\n"
        "count = 0\n"
        "while count < 3000:\n"
        "    try: pid = os.fork()\n"
        "    except OSError: break\n"
        "    if pid == 0: time.sleep(60)\n"
        "    count += 1\n"
        "print(count)\n"
    )
    assert 20 < int(output) < 110


@needs_root
async def test_the_disk_of_a_session_is_bounded(run_bash, folder):
    output = await run_bash(
        "for n in 1 2 3; do head -c 40000000 /dev/zero >f$n; done; du -sm . | cut -f1; "
        "rm f?; i=0; while : >/tmp/n$i; do i=$((i+1)); done 2>/dev/null; echo $i"
    )
    megabytes, inodes = map(int, [line for line in output.splitlines() if line.isdigit()])
    assert megabytes < 64
    assert inodes < 5100


@needs_root
async def test_memory_is_bounded_by_the_cgroup(session):
    result = await session.run(["python3", "-c", "x = bytearray(400 << 20)"])
    assert result.exit_code == 137
    assert result.out_of_memory
    memfd = "import os\nwhile True: os.write(os.memfd_create('x'), bytes(30 << 20))"
    assert (await session.run(["python3", "-c", memfd], timeout=20)).out_of_memory
    assert not (await session.run(["true"])).out_of_memory


async def test_a_tool_chain_is_seen_read_only_and_comes_first(folder, mirror, limits, root):
    toolchain = folder / "chain"
    (toolchain / "bin").mkdir(parents=True)
    (toolchain / "bin" / "git").write_text("#!/bin/sh\necho another git\n")
    (toolchain / "bin" / "git").chmod(0o755)
    (toolchain / "bin" / "mytool").symlink_to("git")
    sandbox = BubblewrapSandbox(root, Path, SandboxOptions(toolchains=[toolchain], weak=True))
    session, _ = await sandbox.create("a", mirror.build_plan(limits))
    result = await session.run(["bash", "-c", f"mytool; touch {toolchain}/bin/x || echo held"])
    await session.destroy()
    assert result.output.splitlines()[0] == b"another git"
    assert result.output.splitlines()[-1] == b"held"


async def test_ordinary_development_works(run_bash):
    output = await run_bash(
        "set -e; git config core.editor true; echo 'int main(){return 0;}' >a.c; gcc a.c -o a.out"
        " && ./a.out; git add a.c; git commit -qm one; git log --oneline | wc -l; git status"
        " --short | wc -l; python3 -c 'import multiprocessing as m; print(m.Pool(2).map(abs,"
        " [-1]))'; script -qc 'echo tty' /dev/null"
    )
    assert output.split() == ["2", "1", "[1]", "tty"]


def test_the_policy_is_a_list_that_can_be_read():
    from osiris.tools.sandbox.jail.bwrap_arguments import JailSpec, build_arguments

    arguments = build_arguments(JailSpec(etc=Path("/e"), work=Path("/w"), work_writable=False))
    assert " ".join(arguments).endswith(
        "--remount-ro /proc --remount-ro /dev --remount-ro / --chdir /workspace"
    )
    assert " ".join(["--ro-bind", "/w", "/workspace"]) in " ".join(arguments)
    assert {
        "--unshare-user",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--clearenv",
    } <= set(arguments)


@needs_root
async def test_a_jail_enters_a_real_cgroup_of_version_2(session, folder):
    """Any controllers will do."""
    mount_fields = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    cgroup_folder = next(
        (Path(mount_point) for _, mount_point, kind, *_ in mount_fields if kind == "cgroup2"),
        folder / "unified",
    )
    if cgroup_folder.parent == folder:
        cgroup_folder.mkdir()
        subprocess.run(["mount", "-t", "cgroup2", "none", cgroup_folder], check=True)
    group = Cgroup((cgroup_folder / f"osiris-{secrets.token_hex(4)}",))
    group.folders[0].mkdir()
    try:
        result = await run_once(
            session.build_read_only_spec(), ["/bin/cat", "/proc/self/cgroup"], 20, cgroup=group
        )
    finally:
        while not group.remove():
            await asyncio.sleep(0.05)
    assert any(
        line.endswith(f"/{group.folders[0].name}") for line in result.output.decode().splitlines()
    )


async def test_a_jail_that_fails_without_a_word_holds_up_nothing_else(session, folder, monkeypatch):
    """Bubblewrap ends, and a process that it started keeps the output open until other tasks have
    run."""
    program = folder / "bwrap"
    notes = folder / "notes"
    notes.mkdir()
    notes.chmod(0o777)
    program.write_text(SILENT_BWRAP.format(notes))
    program.chmod(0o755)
    ended_tasks = []

    async def do_other_work() -> None:
        while not (notes / "seen").exists():
            await asyncio.sleep(0.05)
        ended_tasks.append("work")
        (notes / "go").touch()

    monkeypatch.setattr(process, "BWRAP", str(program))
    worker_task = asyncio.create_task(do_other_work())
    with pytest.raises(Unavailable, match="could not be set up"):
        await process.run_once(session._resources.spec, ["/bin/true"], 5, cgroup=None)
    ended_tasks.append("jail")
    await worker_task
    assert ended_tasks == ["work", "jail"]
