"""Open file descriptors: the set that one jail owns, and waiting until one is readable."""

import asyncio
import os
import select


class DescriptorSet:
    """The open descriptors of one owner."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def __contains__(self, fd: object) -> bool:
        return fd in self._open

    def __len__(self) -> int:
        return len(self._open)

    def add(self, fd: int) -> int:
        self._open.add(fd)
        return fd

    def open_pipe(self) -> tuple[int, int]:
        """Return the two ends of a new pipe: to read from, and to write to."""
        read, write = os.pipe()
        return self.add(read), self.add(write)

    def create_memfd(self, content: bytes) -> int:
        fd = self.add(os.memfd_create("osiris"))
        os.pwrite(fd, content, 0)
        return fd

    def close(self, *fds: int) -> None:
        """Close those of `fds` that are still open."""
        for fd in self._open & set(fds):
            os.close(fd)
        self._open -= set(fds)

    def close_all(self, *, keep: int | None = None) -> None:
        """Close every descriptor except `keep`."""
        self.close(*(self._open - {keep}))


async def wait_until_readable(fd: int) -> None:
    """Wait until `fd` is readable, on the event loop."""
    loop = asyncio.get_running_loop()
    seen: asyncio.Future[None] = loop.create_future()

    def mark_readable() -> None:
        if not seen.done():
            seen.set_result(None)

    loop.add_reader(fd, mark_readable)
    try:
        await seen
    finally:
        loop.remove_reader(fd)


def is_readable(fd: int, seconds: float) -> bool:
    """Return whether `fd` is readable, or becomes so within `seconds`; blocks the thread."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
