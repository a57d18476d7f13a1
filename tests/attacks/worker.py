"""The process of a worker, as attackers find it: it has secrets in its environment, in its files
and behind its sockets, and real sandboxes. Tests call it through a pair of sockets, so that it can
be a process of another user.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from osiris.core.ports.sandbox import Plan, Result, Session
from osiris.loop_monitor import LoopMonitor
from osiris.tools.sandbox.backend import BubblewrapSandbox
from osiris.tools.sandbox.options import SandboxOptions
from osiris.tools.sandbox.workspace import file_helper_client
from osiris.tools.toolbox import SessionTools

CANARY = "canary-9f2c71d0b4e8"
"""The one secret of this process. It is in its environment, in files and behind sockets, and
nowhere else."""


STALL_LIMIT = 0.25
"""Seconds for which an attack may block the event loop of its worker."""

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
"""A method of `WorkerService`, and its arguments."""


class WorkerService:
    """The methods that tests call in the worker; see `conftest.WorkerUnderAttack`. `folder` is a
    folder for this worker alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sandbox = BubblewrapSandbox(
            folder / "sandboxes", Path, SandboxOptions(weak=True, network="agent")
        )
        self._sessions: dict[str, Session] = {}
        self._unprotected_folder = folder / "plain"
        self._unprotected_folder.mkdir(exist_ok=True)
        self.port = self._plant_canary()

    def _plant_canary(self) -> int:
        """Put the canary where attackers look for it, and return the port of 127.0.0.1 that sends
        it."""
        (self._folder / "private.pem").write_text(CANARY)
        (self._folder / "private.pem").chmod(0o600)
        (self._folder / "readable").write_text(CANARY)
        (self._folder / "control.sock").unlink(missing_ok=True)
        _serve_canary(socket.socket(socket.AF_UNIX), str(self._folder / "control.sock"))
        _serve_canary(socket.socket(socket.AF_UNIX), f"\0{self._folder}/control")
        tcp = socket.socket()
        _serve_canary(tcp, ("127.0.0.1", 0))
        port = int(tcp.getsockname()[1])
        _answer_datagrams(socket.socket(type=socket.SOCK_DGRAM), ("127.0.0.1", port))
        for fd in (
            os.open(self._folder / "private.pem", os.O_RDONLY),
            os.open(self._folder, os.O_PATH),
        ):
            # like a careless library: processes inherit the descriptor unless it is closed for them
            os.set_inheritable(fd, True)
        return port

    async def create_session(self, name: str, repo: str, base: str, **options: Any) -> None:
        """Create a session. `options` are fields of `Plan`, such as `limits` and `hosts`."""
        plan = Plan(repo=repo, base=base, trusted=base, **options)
        self._sessions[name], _ = await self._sandbox.create(name, plan)
        await self._sessions[name].seal()

    async def destroy_session(self, name: str) -> None:
        await self._sessions.pop(name).destroy()

    async def remove_session(self, name: str) -> None:
        """Remove a session that another worker has left behind."""
        await self._sandbox.remove(name)

    async def run_command(self, name: str, argv: Sequence[str], **options: Any) -> Result:
        """Run a command in session `name`."""
        return await self._sessions[name].run(argv, **options)

    async def call_tool(self, name: str, tool: str, args: dict[str, Any]) -> str:
        """Call a tool of the model in session `name`, and return its answer."""
        return (await SessionTools(self._sessions[name]).call_tool(tool, args)).text

    async def export_work(self, name: str, base: str, target: str) -> str:
        """Export the work of session `name`: write its pack to the file `target`, and return the id
        of its tree."""
        export = await self._sessions[name].export(base)
        with export.pack as pack:
            Path(target).write_bytes(pack.read())
        return export.tree

    async def run_unprotected(self, argv: Sequence[str], timeout: float = 20) -> bytes:
        """Run a command without a sandbox, as this process would, and return its output: it shows
        what an attack does when nothing stops it. Root's command gets a mount namespace of its own,
        so that its mounts do not stay on the machine."""
        streams = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
        }
        unshare = (
            [] if os.geteuid() else ["/usr/bin/unshare", "--mount", "--propagation=private", "--"]
        )
        process = subprocess.Popen(
            [*unshare, *argv],
            cwd=self._unprotected_folder,
            close_fds=False,
            start_new_session=True,
            **streams,
        )
        try:
            return process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.communicate()[0]

    async def measure_growth(
        self, name: str, argv: Sequence[str], **options: Any
    ) -> tuple[Result, int]:
        """Run a command in session `name`. Return its result, and by how many bytes at most this
        process grew meanwhile."""
        reset_peak_memory()
        before = read_peak_memory()
        result = await self.run_command(name, argv, **options)
        return result, read_peak_memory() - before

    async def run_beside(self, first: Call, *others: Call) -> tuple[Any, list[Any]]:
        """Run one call, and the others in turn, again and again, until the first has ended. Return
        the result of the first, and the results of the others."""
        running = asyncio.ensure_future(self.dispatch_call(first))
        results = [await self.dispatch_call(other) for other in others]
        while not running.done():
            results += [await self.dispatch_call(other) for other in others]
        return await running, results

    async def run_together(self, calls: Sequence[Call]) -> list[Any]:
        """Run several calls at once, and return their results or exceptions."""
        return await asyncio.gather(*map(self.dispatch_call, calls), return_exceptions=True)

    async def cancel_command(self, name: str, argv: Sequence[str], count: int) -> int:
        """Run a command in session `name`, and cancel it when `count` processes have its last
        argument in their command lines. Return how many had it."""
        task = asyncio.ensure_future(self.run_command(name, argv))
        argument = argv[-1].encode()
        found = 0
        async with asyncio.timeout(60):
            while found < count and not task.done():
                await asyncio.sleep(0.05)
                found = await asyncio.to_thread(_count_processes, argument)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return found

    async def block_loop(self, seconds: float) -> None:
        """Block the event loop, as no code of a worker may do."""
        time.sleep(seconds)

    async def set_file_tool_timeout(self, seconds: float) -> None:
        """Change how long a call of the file tools may take."""
        file_helper_client.PATIENCE = seconds  # type: ignore[misc]

    async def dispatch_call(self, call: Call) -> Any:
        method, args, options = call
        return await getattr(self, method)(*args, **options)


def _count_processes(argument: bytes) -> int:
    """Return how many processes of this machine have an argument in their command lines."""
    count = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            count += argument in (entry / "cmdline").read_bytes()
    return count


def _serve_canary(listener: socket.socket, address: Any) -> None:
    """Send the canary to every process that connects."""
    listener.bind(address)
    listener.listen()

    def serve() -> None:
        while True:
            with listener.accept()[0] as caller, contextlib.suppress(OSError):
                caller.sendall(CANARY.encode())

    threading.Thread(target=serve, daemon=True).start()


def _answer_datagrams(listener: socket.socket, address: Any) -> None:
    """Answer every datagram with the canary."""
    listener.bind(address)

    def serve() -> None:
        while True:
            with contextlib.suppress(OSError):
                listener.sendto(CANARY.encode(), listener.recvfrom(512)[1])

    threading.Thread(target=serve, daemon=True).start()


def reset_peak_memory() -> None:
    """Make `read_peak_memory` start again from the memory in use now; see
    proc_pid_clear_refs(5)."""
    Path("/proc/self/clear_refs").write_text("5")


def read_peak_memory() -> int:
    """Return the most memory that this process has used since `reset_peak_memory`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


Stall = tuple[float, str]
"""How many seconds the event loop stood still, and the code that ran."""


async def _run_call(service: WorkerService, call: Call) -> tuple[Exception | None, Any, Stall]:
    """Return the exception or the result of a call, and the longest stall during it."""
    monitor = LoopMonitor(STALL_LIMIT)
    error = None
    value = None
    with monitor.watch_loop():
        try:
            value = await service.dispatch_call(call)
        except Exception as raised:  # noqa: BLE001  (it is raised in the test that called)
            error = raised
    return error, value, (0.0, "") if _is_control(call) else (monitor.longest, monitor.place)


def _is_control(call: Call) -> bool:
    """Return whether a call, or a call in it, is a control, which blocks the loop on purpose."""
    method, args, _ = call
    calls = args[0] if method == "run_together" else args if method == "run_beside" else ()
    return method == "run_unprotected" or any(map(_is_control, calls))


def main() -> None:
    """Run the calls that come through descriptor argv[1], until it is closed."""
    caller = Connection(int(sys.argv[1]))
    loop = asyncio.new_event_loop()
    service = WorkerService(Path(sys.argv[2]))
    caller.send((None, (CANARY, service.port, os.getpid()), (0.0, "")))
    with contextlib.suppress(EOFError):
        while True:
            caller.send(loop.run_until_complete(_run_call(service, caller.recv())))
    with contextlib.suppress(Exception):
        for name in list(service._sessions):
            loop.run_until_complete(service.destroy_session(name))


if __name__ == "__main__":
    main()
