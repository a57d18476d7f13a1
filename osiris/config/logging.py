"""Logging for people or for machines. Known secrets are redacted from every line."""

import json
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from osiris.core.redaction import Redactor
from osiris.core.sanitize import clean_text

MOST: Final = 16_000  # characters of one line; the end of a traceback matters most


class _RedactingFormatter(logging.Formatter):
    def __init__(self, hide: Redactor) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        self._hide = hide

    def format(self, record: logging.LogRecord) -> str:
        return _bound_line(self._hide(super().format(record)))

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the message as one line, so that untrusted text in it cannot be taken for another
        log line."""
        record.message = record.message.replace("\r", "\\r").replace("\n", "\\n")
        return super().formatMessage(record)


class _JsonFormatter(_RedactingFormatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        # secrets are redacted before the cut, which could leave a part of one
        return json.dumps({name: _bound_line(self._hide(text)) for name, text in line.items()})


def _bound_line(text: str) -> str:
    """Return text for the log without hidden characters, and without its middle if it is very
    long."""
    text = clean_text(text)
    if len(text) <= MOST:
        return text
    half = MOST // 2
    return f"{text[:half]} … [{len(text) - 2 * half} characters left out] … {text[-half:]}"


def configure_logging(style: str, secrets: Sequence[str] = (), level: int = logging.INFO) -> None:
    """Send every log line to stderr, as `text` or as one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    hide = Redactor(secrets)
    handler.setFormatter(_JsonFormatter(hide) if style == "json" else _RedactingFormatter(hide))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in (
        "httpx",
        "httpx2",
        "google_genai",
        "httpcore",
        "uvicorn.access",
        "githubkit",
        "alembic",
        "arq",
    ):
        logging.getLogger(noisy).setLevel(logging.WARNING)
