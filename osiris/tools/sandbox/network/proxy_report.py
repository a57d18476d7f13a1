"""The report of a session's egress proxy about one command, checked as untrusted input: a jail may
have taken over the proxy."""

import json
from dataclasses import dataclass
from typing import Final

from osiris.core.sanitize import clean_text
from osiris.core.work import Blocked
from osiris.tools.sandbox.network.egress_proxy import LONGEST_REASON, MOST_NAMES
from osiris.tools.sandbox.network.tls_client_hello import LONGEST_NAME

MOST_REPORT: Final = 1 << 17  # bytes: a hundred rows of the longest host and reason are 70 KB
MOST_TIMES: Final = 1 << 40
LONGEST_UNREACHABLE: Final = LONGEST_NAME + LONGEST_REASON + 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyReport:
    """The refused connections; and the allowed host that could not be reached, with the reason ("":
    none)."""

    blocked: tuple[Blocked, ...]
    unreachable: str


def parse_report(data: bytes) -> ProxyReport:
    """Parse a report. Raises ValueError or RecursionError for anything that the proxy's own code
    cannot write."""
    report = json.loads(data)
    if not isinstance(report, dict) or set(report) != {"blocked", "unreachable"}:
        raise ValueError("not a report")
    rows = report["blocked"]
    if not isinstance(rows, list) or len(rows) > MOST_NAMES + 1:
        raise ValueError("not a list of hosts")
    return ProxyReport(
        blocked=tuple(map(_read_row, rows)),
        unreachable=_read_text(report["unreachable"], LONGEST_UNREACHABLE),
    )


def _read_row(row: object) -> Blocked:
    if not isinstance(row, list) or len(row) != 4:
        raise ValueError("not a row")
    return Blocked(
        host=_read_text(row[0], LONGEST_NAME),
        port=_read_number(row[1], 99_999),
        times=_read_number(row[2], MOST_TIMES),
        reason=_read_text(row[3], LONGEST_REASON),
    )


def _read_text(value: object, most: int) -> str:
    """Return the text as one line without hidden characters."""
    if not isinstance(value, str) or len(value) > most:
        raise ValueError("not a text, or too long")
    return " ".join(clean_text(value).split())


def _read_number(value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("not a number, or too large")
    return value
