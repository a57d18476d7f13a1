"""The tests of the flow and of devhub, played once with the recorder on, and what it wrote."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fidelity.recorder import FOLDER

TESTS = ("tests/flow", "tests/devhub")
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class RecordedRequest:
    """One request to a hub and the hub's own answer; `status` is 0 when an interceptor kept the
    request from it."""

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
class Sent:
    """One webhook as it went over the wire, and the secret it was signed with."""

    test: str
    event: str
    headers: dict[str, str]
    body: str
    secret: str


@dataclass(frozen=True, kw_only=True)
class Recordings:
    asked: Sequence[RecordedRequest]
    sent: Sequence[Sent]


def record() -> None:
    """Play the tests. Raises RuntimeError when one of them fails."""
    shutil.rmtree(FOLDER, ignore_errors=True)
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


def load(folder: Path = FOLDER) -> Recordings:
    rows = [
        json.loads(line)
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    asked = [_asked(row) for row in rows if row.pop("kind", "") == "exchange"]
    sent = [Sent(**row) for row in rows if "secret" in row]
    if not asked or not sent:
        raise RuntimeError(f"nothing is recorded in {folder}; leave out --recorded")
    return Recordings(asked=asked, sent=sent)


def _asked(row: dict[str, Any]) -> RecordedRequest:
    answer = row.pop("answer") or {"status": 0, "headers": {}, "body": ""}
    return RecordedRequest(
        **row, status=answer["status"], answer_headers=answer["headers"], answer=answer["body"]
    )
