"""The load generator, a separate process: it sends signed deliveries over keep-alive connections
and measures each answer.

It uses one thread and select(), whose time-outs are exact to microseconds. It reads a job in JSON
from stdin, and writes figures to stdout. With a rate, the time of a delivery counts from the moment
at which it was due, not from when it could be sent (no coordinated omission). Without a rate, each
connection sends its next delivery as soon as the last was answered.
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
    """A keep-alive connection with at most one delivery at a time."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.due = 0.0
        self._connect()

    def _connect(self) -> None:
        self._received = b""
        self._socket = socket.create_connection(("127.0.0.1", self._port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes, due: float) -> None:
        self.due = due
        self._socket.sendall(data)

    def read_status(self) -> int | None:
        """Return the status of the answer once all of it was received, None before; 0 if the server
        closed the connection."""
        data = self._socket.recv(65536)
        if not data:
            self._connect()
            return 0
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or len(body) < _read_content_length(head):
            return None
        self._received = b""
        return int(head[9:12])


def _read_content_length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    raise SystemExit("load: an answer without a length")


class LoadGenerator:
    """A generator of deliveries with consecutive numbers, which uses the bodies in turn."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._connections = [LoadConnection(job["port"]) for _ in range(job["connections"])]
        self._prefix = job["prefix"]
        self._seconds = job["seconds"]
        self._rate = job["rate"]
        self._signed_bodies = [sign_request(body.encode(), job["secret"]) for body in job["bodies"]]
        self.durations: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.delays: list[float] = []

    def _build_request(self, number: int) -> bytes:
        head, body = self._signed_bodies[number % len(self._signed_bodies)]
        return b"%bX-GitHub-Delivery: %b-%d\r\n\r\n%b" % (head, self._prefix.encode(), number, body)

    def _receive_answer(self, connection: LoadConnection) -> bool:
        if (status := connection.read_status()) is None:
            return False
        self.durations.append(time.perf_counter() - connection.due)
        self.statuses[status] += 1
        return True

    def run_at_rate(self) -> None:
        """Send `rate` deliveries a second, even if the answers take longer."""
        total = int(self._rate * self._seconds)
        sent_count = 0
        idle = deque(self._connections)
        busy = set[LoadConnection]()
        waiting: deque[float] = deque()
        start = time.perf_counter() + 0.05
        due = [start + n / self._rate for n in range(total)]
        while len(self.durations) < total:
            now = time.perf_counter()
            while (n := sent_count + len(waiting)) < total and due[n] <= now:
                waiting.append(due[n])
            while waiting and idle:
                # connections in turn: a server closes a connection that is idle for seconds
                connection = idle.popleft()
                connection.send(self._build_request(sent_count), due_time := waiting.popleft())
                self.delays.append(time.perf_counter() - due_time)
                busy.add(connection)
                sent_count += 1
            n = sent_count + len(waiting)
            pause = max(0.0, due[n] - time.perf_counter()) if n < total else 1.0
            for connection in select.select(list(busy), [], [], pause)[0]:
                if self._receive_answer(connection):
                    busy.discard(connection)
                    idle.append(connection)

    def run_at_full_speed(self) -> float:
        """Send deliveries as fast as the answers arrive. Return the accepted deliveries a
        second."""
        began = time.perf_counter()
        deadline = began + self._seconds
        sent_count = 0
        busy = set(self._connections)
        for connection in self._connections:
            connection.send(self._build_request(sent_count), time.perf_counter())
            sent_count += 1
        while busy:
            for connection in select.select(list(busy), [], [], 10)[0]:
                if self._receive_answer(connection):
                    if time.perf_counter() < deadline:
                        connection.send(self._build_request(sent_count), time.perf_counter())
                        sent_count += 1
                    else:
                        busy.discard(connection)
        return self.statuses[ACCEPTED] / (time.perf_counter() - began)


def sign_request(body: bytes, secret: str) -> tuple[bytes, bytes]:
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
    generator = LoadGenerator(job := json.load(sys.stdin))
    rate = generator.run_at_full_speed() if job["rate"] is None else generator.run_at_rate()
    report = {
        "took": generator.durations,
        "statuses": generator.statuses,
        "late": generator.delays,
        "rate": rate,
    }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
