"""Logs for people or for machines; a known secret never gets through."""

import json
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from osiris.redaction import Redactor


class _Redacted(logging.Formatter):
    def __init__(self, hide: Redactor) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        self._hide = hide

    def format(self, record: logging.LogRecord) -> str:
        return self._hide(super().format(record))


class _Json(_Redacted):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(self._hide.within(line))


def configure(style: str, secrets: Sequence[str] = (), level: int = logging.INFO) -> None:
    """Send every log line to stderr, as `text` or as one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    hide = Redactor(secrets)
    handler.setFormatter(_Json(hide) if style == "json" else _Redacted(hide))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("httpx", "httpx2", "google_genai", "httpcore", "uvicorn.access", "githubkit", "alembic", "arq"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
