"""Logs for people or for machines; a known secret never gets through."""

import json
import logging
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

_TOKENS = re.compile(
    r"\b(?:gh[psour]_|github_pat_)[A-Za-z0-9_.\-]{8,}|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?-----END"
)


def redact(text: str, secrets: Sequence[str] = ()) -> str:
    """`text` without the known secrets and without anything shaped like a GitHub token or a private key."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return _TOKENS.sub("***", text)


class _Redacted(logging.Formatter):
    def __init__(self, secrets: Sequence[str]) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        self._secrets = [secret for secret in secrets if len(secret) >= 6]

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record), self._secrets)


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
        return redact(json.dumps(line), self._secrets)


def configure(style: str, secrets: Sequence[str] = (), level: int = logging.INFO) -> None:
    """Send every log line to stderr, as `text` or as one JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json(secrets) if style == "json" else _Redacted(secrets))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("httpx", "httpx2", "google_genai", "httpcore", "uvicorn.access", "githubkit", "alembic", "arq"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
