"""The load generator, a process of its own: signed deliveries over keep-alive connections, each
answer timed.

One thread and select(), whose time-outs are exact to microseconds. A job in JSON comes on stdin,
figures go to stdout. With a rate, a delivery's time counts from the moment it was due, not from
when it could be sent (no coordinated omission); without one, every connection sends its next
delivery as soon as the last was answered.
"""

import hashlib
import hmac
import json
import select
import socket
import sys
import time
from collections import Counter, deque
from typing import Any

ACCEPTED = 202


class LoadConnection:
    """One keep-alive connection with at most one delivery on it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.due = 0.0
        self._connect()

    def _connect(self) -> None:
        self._answer = b""
        self._socket = socket.create_connection(("127.0.0.1", self._port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes, due: float) -> None:
        self.due = due
        self._socket.sendall(data)

    def status(self) -> int | None:
        """The answer's status once all of it is here; 0 when the other side hung up."""
        more = self._socket.recv(65536)
        if not more:
            self._connect()
            return 0
        self._answer += more
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if not found or len(body) < _length(head):
            return None
        self._answer = b""
        return int(head[9:12])


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    raise SystemExit("load: an answer without a length")


class Load:
    """Deliveries `first`, `first` + 1 ... with bodies by turns."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._lines = [LoadConnection(job["port"]) for _ in range(job["connections"])]
        self._prefix = job["prefix"]
        self._seconds = job["seconds"]
        self._rate = job["rate"]
        self._ready = [_signed(body.encode(), job["secret"]) for body in job["bodies"]]
        self.took: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.late: list[float] = []

    def _data(self, number: int) -> bytes:
        head, body = self._ready[number % len(self._ready)]
        return b"%bX-GitHub-Delivery: %b-%d\r\n\r\n%b" % (head, self._prefix.encode(), number, body)

    def _answered(self, line: LoadConnection) -> bool:
        if (status := line.status()) is None:
            return False
        self.took.append(time.perf_counter() - line.due)
        self.statuses[status] += 1
        return True

    def open(self) -> None:
        """`rate` a second, whether or not the answers keep up."""
        total = int(self._rate * self._seconds)
        sent = 0
        idle = deque(self._lines)
        busy = set[LoadConnection]()
        waiting: deque[float] = deque()
        start = time.perf_counter() + 0.05
        due = [start + n / self._rate for n in range(total)]
        while len(self.took) < total:
            now = time.perf_counter()
            while (n := sent + len(waiting)) < total and due[n] <= now:
                waiting.append(due[n])
            while waiting and idle:
                # by turns: a server hangs up on a line that rests for seconds
                line = idle.popleft()
                line.send(self._data(sent), moment := waiting.popleft())
                self.late.append(time.perf_counter() - moment)
                busy.add(line)
                sent += 1
            n = sent + len(waiting)
            pause = max(0.0, due[n] - time.perf_counter()) if n < total else 1.0
            for line in select.select(list(busy), [], [], pause)[0]:
                if self._answered(line):
                    busy.discard(line)
                    idle.append(line)

    def closed(self) -> float:
        """As fast as the answers come; gives the rate."""
        began = time.perf_counter()
        until = began + self._seconds
        sent = 0
        busy = set(self._lines)
        for line in self._lines:
            line.send(self._data(sent), time.perf_counter())
            sent += 1
        while busy:
            for line in select.select(list(busy), [], [], 10)[0]:
                if self._answered(line):
                    if time.perf_counter() < until:
                        line.send(self._data(sent), time.perf_counter())
                        sent += 1
                    else:
                        busy.discard(line)
        return self.statuses[ACCEPTED] / (time.perf_counter() - began)


def _signed(body: bytes, secret: str) -> tuple[bytes, bytes]:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    lines = [
        "POST /webhooks/github HTTP/1.1",
        "Host: 127.0.0.1",
        "User-Agent: GitHub-Hookshot/bench",
        "Accept: */*",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "X-GitHub-Event: issues",
        f"X-Hub-Signature-256: sha256={digest}",
        "",
    ]
    return "\r\n".join(lines).encode(), body


def main() -> None:
    load = Load(job := json.load(sys.stdin))
    rate = load.closed() if job["rate"] is None else load.open()
    report = {"took": load.took, "statuses": load.statuses, "late": load.late, "rate": rate}
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
