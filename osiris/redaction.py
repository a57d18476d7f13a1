"""Taking secrets out of words, on every way out: logs, comments, commits, answers to a model.

Those that are known, and what is shaped like one. The shapes are what their makers document; for GitHub's see
https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/ (its newer
installation tokens hold a JWT, and so dots).
"""

import base64
import json
import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote

HIDDEN: Final = "***"
SHORTEST: Final = 6  # characters of a known secret: a shorter one would take common words out

_SHAPES: Final = "|".join(
    [
        r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----(?:[\s\S]*?-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|[\s\S]*)",
        r"\b(?:gh[psour]_|github_pat_)[A-Za-z0-9_.\-]{8,}",
        r"\bglpat-[A-Za-z0-9_.\-]{20,}",
        r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",
        r"\bsk-(?=[A-Za-z0-9_\-]*\d)[A-Za-z0-9_\-]{20,}",  # OpenAI, Anthropic and others after them
        r"\b(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
        r"\bwhsec_[A-Za-z0-9+/=]{20,}",
        r"\bAIza[A-Za-z0-9_\-]{35}",  # Google
        r"\bya29\.[A-Za-z0-9_\-]{20,}",
        r"\bxox[abeoprs]-[A-Za-z0-9\-]{10,}",  # Slack
        r"\bxapp-\d-[A-Za-z0-9\-]{10,}",
        r"\bnpm_[A-Za-z0-9]{36}\b",
        r"\bpypi-[A-Za-z0-9_\-]{50,}",
        r"\bhf_[A-Za-z0-9]{30,}",
        r"\bdop_v1_[a-f0-9]{64}",
        r"\bSG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}",
        r"\b\d{8,10}:[A-Za-z0-9_\-]{35}\b",  # Telegram
        r"\beyJ[A-Za-z0-9_\-]{10,}\.eyJ[A-Za-z0-9_\-]{10,}\.[A-Za-z0-9_\-]{10,}",  # JSON Web Token: RFC 7519
        r"(?i:(?<=authorization: bearer )|(?<=authorization: basic )|(?<=authorization: token ))[\w.~+/=\-]{16,}",
    ]
)


class Redactor:
    """Hides the `known` secrets, also as JSON, URLs and base64 write them, and everything of a known shape."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        forms = {form for secret in known if len(secret) >= SHORTEST for form in _forms(secret)}
        # the longest first, so that all of it goes; and what base64 fills up with
        words = [f"{re.escape(form)}(?:={{1,2}})?" for form in sorted(forms, key=len, reverse=True)]
        self._secrets = re.compile("|".join([*words, _SHAPES]))

    def __call__(self, text: str) -> str:
        return self._secrets.sub(HIDDEN, text)

    def within(self, value: Any) -> Any:
        """A value as JSON knows them, with every text in it redacted."""
        match value:
            case str():
                return self(value)
            case dict():
                return {key: self.within(inner) for key, inner in value.items()}
            case list() | tuple():
                return [self.within(inner) for inner in value]
        return value


def _forms(secret: str) -> Iterable[str]:
    encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
    return (secret, secret.strip(), json.dumps(secret)[1:-1], quote(secret, safe=""), encoded)
