"""The bridge to the egress proxy. It runs INSIDE the jail by `python3 -I -S`: it opens a port of
localhost that leads to the proxy's socket, and then runs the command.

Programs can reach a proxy by host and port only. The bridge is not a child of the command and holds
none of its streams, so the command does not notice it; it ends with the jail.
"""

from __future__ import annotations

import os
import socket
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio

PORT = 3128
FOLDER = "/run/egress"
SOCKET = "egress.sock"
CHUNK = 1 << 16


def main(argv: list[str]) -> None:
    listener = socket.create_server(("127.0.0.1", PORT), backlog=128)
    if os.fork() == 0:
        if os.fork() == 0:
            _detach_process()
            _serve_bridge(listener)
        os._exit(0)
    os.wait()
    listener.close()
    try:
        os.execvp(argv[0], argv)  # noqa: S606  (no shell: the command is a list of words)
    except OSError as error:
        sys.exit(f"{argv[0]}: {error.strerror}")


def _detach_process() -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)


def _serve_bridge(listener: socket.socket) -> None:
    import asyncio  # takes 40 ms, for which the command need not wait

    async def run() -> None:
        server = await asyncio.start_server(_relay_connection, sock=listener)
        await server.serve_forever()

    asyncio.run(run())


async def _relay_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    import asyncio

    try:
        there = await asyncio.open_unix_connection(f"{FOLDER}/{SOCKET}")
        await asyncio.gather(_copy_bytes(reader, there[1]), _copy_bytes(there[0], writer))
        there[1].close()
    except OSError:
        pass
    finally:
        writer.close()


async def _copy_bytes(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    try:
        while data := await source.read(CHUNK):
            target.write(data)
            await target.drain()
        target.write_eof()
    except OSError:
        target.close()


if __name__ == "__main__":
    main(sys.argv[1:])
