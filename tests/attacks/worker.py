"""A worker's process as attackers find it: secrets in its environment, its files and behind its
sockets, and real sandboxes. The tests tell it what to do through a pair of sockets, so that it can
be another user's process than theirs.
"""

import asyncio
import contextlib
import os
import resource
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
"""The one secret of this process. It stands in its environment, in files and behind sockets, and
nowhere else."""


STALL = 0.25
"""Seconds for which an attack may hold the event loop of its worker."""

Call = tuple[str, tuple[Any, ...], dict[str, Any]]
"""A method of `Worker`, and what it is given."""


class AttackedWorker:
    """What the tests may ask of it; see `conftest.Attacked`. `place` is a folder of its own."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._sandbox = BubblewrapSandbox(
            place / "sandboxes", Path, SandboxOptions(weak=True, network="agent")
        )
        self._sessions: dict[str, Session] = {}
        self._plain = place / "plain"
        self._plain.mkdir(exist_ok=True)
        self.port = self._secrets()

    def _secrets(self) -> int:
        """Lay the canary out where attackers look for it; returns the port of 127.0.0.1 that gives
        it away."""
        (self._place / "private.pem").write_text(CANARY)
        (self._place / "private.pem").chmod(0o600)
        (self._place / "readable").write_text(CANARY)
        (self._place / "control.sock").unlink(missing_ok=True)
        _serve(socket.socket(socket.AF_UNIX), str(self._place / "control.sock"))
        _serve(socket.socket(socket.AF_UNIX), f"\0{self._place}/control")
        tcp = socket.socket()
        _serve(tcp, ("127.0.0.1", 0))
        port = int(tcp.getsockname()[1])
        _echo(socket.socket(type=socket.SOCK_DGRAM), ("127.0.0.1", port))
        for opened in (
            os.open(self._place / "private.pem", os.O_RDONLY),
            os.open(self._place, os.O_PATH),
        ):
            # a careless library: whoever is started has them, unless they are closed
            os.set_inheritable(opened, True)
        return port

    async def create(self, name: str, repo: str, base: str, **more: Any) -> None:
        """A new session `name`; `limits` and `hosts` as in a `Plan`."""
        plan = Plan(repo=repo, base=base, trusted=base, **more)
        self._sessions[name], _ = await self._sandbox.create(name, plan)
        await self._sessions[name].seal()

    async def run(self, name: str, argv: Sequence[str], **options: Any) -> Result:
        """Run a command in session `name`."""
        return await self._sessions[name].run(argv, **options)

    async def hold_loop(self, seconds: float) -> None:
        """Do what no code of a worker may do."""
        time.sleep(seconds)

    async def tool(self, name: str, tool: str, args: dict[str, Any]) -> str:
        """Use a tool of the model's in session `name`; its answer."""
        return (await SessionTools(self._sessions[name]).call_tool(tool, args)).text

    async def export(self, name: str, base: str, to: str) -> str:
        """Take the work of session `name`: the pack goes to file `to`; the tree's name."""
        export = await self._sessions[name].export(base)
        with export.pack as pack:
            Path(to).write_bytes(pack.read())
        return export.tree

    async def destroy(self, name: str) -> None:
        await self._sessions.pop(name).destroy()

    async def remove(self, name: str) -> None:
        """Throw a session away that another worker has left."""
        await self._sandbox.remove(name)

    async def plain(self, argv: Sequence[str], timeout: float = 20) -> bytes:
        """Run a command without any sandbox, as this process would: what an attack can do when
        nothing stops it. What root mounts is mounted for that command alone: the machine goes on
        with what it had."""
        streams = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
        }
        apart = (
            [] if os.geteuid() else ["/usr/bin/unshare", "--mount", "--propagation=private", "--"]
        )
        done = subprocess.Popen(
            [*apart, *argv], cwd=self._plain, close_fds=False, start_new_session=True, **streams
        )
        try:
            return done.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            os.killpg(done.pid, signal.SIGKILL)
            return done.communicate()[0]

    async def memory(self) -> int:
        """The most memory this process has held, in bytes."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

    async def growth(self, name: str, argv: Sequence[str], **options: Any) -> tuple[Result, int]:
        """Run a command in session `name`; and by how many bytes this process grew at most
        meanwhile."""
        # the most is counted anew; see proc_pid_clear_refs(5)
        Path("/proc/self/clear_refs").write_text("5")
        before = _most_memory()
        result = await self.run(name, argv, **options)
        return result, _most_memory() - before

    async def beside(self, bomb: Call, *others: Call) -> tuple[Any, list[Any]]:
        """Do one thing, and others in turn, again and again, until the first is over; what it and
        they gave."""
        running = asyncio.ensure_future(self._do(bomb))
        given = [await self._do(other) for other in others]
        while not running.done():
            given += [await self._do(other) for other in others]
        return await running, given

    async def cut_off(self, name: str, argv: Sequence[str], many: int) -> int:
        """Run a command in session `name` and cut it off once `many` processes have its words; how
        many had."""
        task = asyncio.ensure_future(self.run(name, argv))
        last = argv[-1].encode()
        seen = 0
        async with asyncio.timeout(60):
            while seen < many and not task.done():
                await asyncio.sleep(0.05)
                seen = await asyncio.to_thread(_count, last)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return seen

    async def hurry(self, seconds: float) -> None:
        """Give the file tools less time than they have."""
        file_helper_client.PATIENCE = seconds  # type: ignore[misc]

    async def together(self, calls: Sequence[Call]) -> list[Any]:
        """Several calls at once; what each gave, an exception included."""
        return await asyncio.gather(*map(self._do, calls), return_exceptions=True)

    async def _do(self, call: Call) -> Any:
        method, args, options = call
        return await getattr(self, method)(*args, **options)


def _count(words: bytes) -> int:
    """How many processes of this machine have these words."""
    found = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found += words in (entry / "cmdline").read_bytes()
    return found


def _serve(listening: socket.socket, address: Any) -> None:
    """Give the canary to whoever connects."""
    listening.bind(address)
    listening.listen()

    def answer() -> None:
        while True:
            with listening.accept()[0] as caller, contextlib.suppress(OSError):
                caller.sendall(CANARY.encode())

    threading.Thread(target=answer, daemon=True).start()


def _echo(listening: socket.socket, address: Any) -> None:
    """Give the canary to whoever sends a datagram."""
    listening.bind(address)

    def answer() -> None:
        while True:
            with contextlib.suppress(OSError):
                listening.sendto(CANARY.encode(), listening.recvfrom(512)[1])

    threading.Thread(target=answer, daemon=True).start()


def _most_memory() -> int:
    """Since it was last counted anew."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


Stall = tuple[float, str]
"""How many seconds the event loop stood still, and what ran."""


async def _answer(worker: AttackedWorker, call: Call) -> tuple[Exception | None, Any, Stall]:
    """What a call gave or raised, and the longest stall meanwhile."""
    monitor = LoopMonitor(STALL)
    error = None
    value = None
    with monitor.watch_loop():
        try:
            value = await worker._do(call)
        except Exception as raised:  # noqa: BLE001  (the test that asked has it)
            error = raised
    return error, value, (0.0, "") if _is_control(call) else (monitor.longest, monitor.place)


def _is_control(call: Call) -> bool:
    """Whether a call, or one in it, is a control, which holds the loop on purpose."""
    method, args, _ = call
    calls = args[0] if method == "together" else args if method == "beside" else ()
    return method == "plain" or any(map(_is_control, calls))


def main() -> None:
    """Obey what comes through descriptor argv[1], until it ends."""
    caller = Connection(int(sys.argv[1]))
    loop = asyncio.new_event_loop()
    worker = AttackedWorker(Path(sys.argv[2]))
    caller.send((None, (CANARY, worker.port, os.getpid()), (0.0, "")))
    with contextlib.suppress(EOFError):
        while True:
            caller.send(loop.run_until_complete(_answer(worker, caller.recv())))
    with contextlib.suppress(Exception):
        for name in list(worker._sessions):
            loop.run_until_complete(worker.destroy(name))


if __name__ == "__main__":
    main()
