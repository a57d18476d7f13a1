"""A buffer of limited size for the output of a command: the head, the tail, and optionally a first
part in full."""


class OutputBuffer:
    """A buffer that keeps `cap` bytes as head and tail, and the first `keep` bytes unchanged."""

    def __init__(self, cap: int, keep: int = 0) -> None:
        self.total = 0
        self.prefix = bytearray()
        self._half = cap // 2
        self._prefix_size = keep
        self._head = bytearray()
        self._tail = bytearray()

    def reset(self) -> None:
        """Empty the buffer."""
        self.total = 0
        for part in (self.prefix, self._head, self._tail):
            part.clear()

    def append(self, data: bytes) -> None:
        self.total += len(data)
        if len(self.prefix) < self._prefix_size:
            self.prefix += data[: self._prefix_size - len(self.prefix)]
        if (room := self._half - len(self._head)) > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data[-self._half :]
        del self._tail[: -self._half]

    def get_excerpt(self) -> bytes:
        """Return head and tail, with a line between them that reports how much was cut."""
        cut = self.total - len(self._head) - len(self._tail)
        gap = b"\n... [%d bytes cut] ...\n" % cut if cut else b""
        return bytes(self._head) + gap + bytes(self._tail)
