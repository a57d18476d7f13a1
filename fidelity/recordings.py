"""The recordings: the tests of the flow and of devhub run once with the recorder, and its files are
read."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fidelity.recorder import RECORDINGS_FOLDER

TESTS = ("tests/flow", "tests/devhub")
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class RecordedRequest:
    """One request to a hub, and the hub's own answer. `status` is 0 if an interceptor kept the
    request from the hub."""

    test: str
    by: str
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: str
    status: int = 0
    answer_headers: dict[str, str]
    answer: str = ""


@dataclass(frozen=True, kw_only=True)
class RecordedDelivery:
    """One webhook as it was sent, and the secret of its signature."""

    test: str
    event: str
    headers: dict[str, str]
    body: str
    secret: str


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """All recorded requests and webhooks."""

    requests: Sequence[RecordedRequest]
    deliveries: Sequence[RecordedDelivery]


def record_tests() -> None:
    """Run the tests. Raise RuntimeError if one of them fails."""
    shutil.rmtree(RECORDINGS_FOLDER, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        *TESTS,
        "-p",
        "fidelity.recorder",
        "-n",
        "2",
        "--dist=worksteal",
    ]
    if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
        raise RuntimeError("these tests fail; mend them first")


def load_recordings(folder: Path = RECORDINGS_FOLDER) -> Recordings:
    """Return the recordings in a folder. Raise RuntimeError if there are none."""
    rows = [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    requests = [_parse_request(row) for row in rows if row.pop("kind", "") == "exchange"]
    deliveries = [RecordedDelivery(**row) for row in rows if "secret" in row]
    if not requests or not deliveries:
        raise RuntimeError(f"nothing is recorded in {folder}; leave out --recorded")
    return Recordings(requests=requests, deliveries=deliveries)


def _parse_request(row: dict[str, Any]) -> RecordedRequest:
    answer = row.pop("answer") or {"status": 0, "headers": {}, "body": ""}
    return RecordedRequest(
        **row, status=answer["status"], answer_headers=answer["headers"], answer=answer["body"]
    )
