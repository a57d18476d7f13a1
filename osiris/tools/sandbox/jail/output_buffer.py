"""Taking what a command prints without growing with it: the head, the tail, and optionally a first
part in full."""


class OutputBuffer:
    """Keeps `cap` bytes as head and tail, and the first `keep` bytes as they came."""

    def __init__(self, cap: int, keep: int = 0) -> None:
        self.total = 0
        self.prefix = bytearray()
        self._half = cap // 2
        self._prefix_size = keep
        self._head = bytearray()
        self._tail = bytearray()

    def reset(self) -> None:
        """Begin again."""
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
        """Head and tail; a line between them says how much is missing."""
        cut = self.total - len(self._head) - len(self._tail)
        gap = b"\n... [%d bytes cut] ...\n" % cut if cut else b""
        return bytes(self._head) + gap + bytes(self._tail)
