"""Redaction of secrets from text that leaves Osiris: logs, comments, commits, answers to a model.

It removes known secrets and everything that has the form of one. The forms are documented by the
vendors; for GitHub's see
https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/
(its newer installation tokens hold a JWT, and so dots).
"""

import base64
import json
import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from typing import Any, Final
from urllib.parse import quote

HIDDEN: Final = "***"
SHORTEST: Final = 6  # characters of a known secret: a shorter one would take common words out

_SHAPES: Final[Mapping[str, str]] = {
    "-----BEGIN ": (
        r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----"
        r"(?:[\s\S]*?-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|[\s\S]*)"
    ),
    "gh": r"\bgh[psour]_[A-Za-z0-9_.\-]{8,}",  # GitHub
    "github_pat_": r"\bgithub_pat_[A-Za-z0-9_.\-]{8,}",
    "glpat-": r"\bglpat-[A-Za-z0-9_.\-]{20,}",
    "A": r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b",
    # OpenAI, Anthropic and others after them
    "sk-": r"(?<![A-Za-z0-9_-])(?>[A-Za-z0-9_-]*?\bsk-)(?=[A-Za-z0-9_-]*[0-9])[A-Za-z0-9_-]{20,}",
    "k_": r"\b(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
    "whsec_": r"\bwhsec_[A-Za-z0-9+/=]{20,}",
    "AIza": r"\bAIza[A-Za-z0-9_\-]{35}",  # Google
    "ya29.": r"\bya29\.[A-Za-z0-9_\-]{20,}",
    "xox": r"\bxox[abeoprs]-[A-Za-z0-9\-]{10,}",  # Slack
    "xapp-": r"\bxapp-\d-[A-Za-z0-9\-]{10,}",
    "npm_": r"\bnpm_[A-Za-z0-9]{36}\b",
    "pypi-": r"\bpypi-[A-Za-z0-9_\-]{50,}",
    "hf_": r"\bhf_[A-Za-z0-9]{30,}",
    "dop_v1_": r"\bdop_v1_[a-f0-9]{64}",
    "SG.": r"\bSG\.[A-Za-z0-9_\-]{16,}\.[A-Za-z0-9_\-]{16,}",
    ":": r"\b\d{8,10}:[A-Za-z0-9_\-]{35}\b",  # Telegram
    # JSON Web Tokens: RFC 7519
    "eyJ": (
        r"(?<![A-Za-z0-9_-])(?>[A-Za-z0-9_-]*?\beyJ)[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
    ),
    " ": (
        r"(?i:(?<=authorization: bearer )|(?<=authorization: basic )|(?<=authorization: token"
        r" ))[\w.~+/=\-]{16,}"
    ),
}
"""A sign that each shape contains, searched for first because that is fast, and the shape itself.

The start of `sk-` and of `eyJ` can repeat within what they take. The atomic group looks only at the
first start of a run, which takes the most: a long run of starts would take quadratic time
otherwise.
"""


class Redactor:
    """A filter that hides the `known` secrets, also as written by JSON, URLs and base64, and
    everything that has the form of a secret.

    It takes time in proportion to the text.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._forms = frozenset(
            form for secret in known if len(secret) >= SHORTEST for form in _encode_variants(secret)
        )

    def __call__(self, text: str) -> str:
        """Return `text` with `***` in the place of each secret."""
        if any(form in text for form in self._forms):
            text = _compile_known(self._forms).sub(HIDDEN, text)
        for sign, shape in _compile_shapes().items():
            if sign in text:
                text = shape.sub(HIDDEN, text)
        return text

    def redact_value(self, value: Any) -> Any:
        """Return a value as JSON knows them, with every text in it redacted."""
        match value:
            case str():
                return self(value)
            case dict():
                return {key: self.redact_value(inner) for key, inner in value.items()}
            case list() | tuple():
                return [self.redact_value(inner) for inner in value]
        return value


@lru_cache(maxsize=4)
def _compile_known(forms: frozenset[str]) -> re.Pattern[str]:
    """Return a pattern of all forms. Compiling a long key takes 20 ms, so it is done when a secret
    was found, which is rare."""
    # the longest first, so that all of it goes; and what base64 fills up with
    words = [f"{re.escape(form)}(?:={{1,2}})?" for form in sorted(forms, key=len, reverse=True)]
    return re.compile("|".join(words))


@cache
def _compile_shapes() -> Mapping[str, re.Pattern[str]]:
    return {sign: re.compile(shape, re.ASCII) for sign, shape in _SHAPES.items()}


def _encode_variants(secret: str) -> Iterable[str]:
    encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
    return (secret, secret.strip(), json.dumps(secret)[1:-1], quote(secret, safe=""), encoded)
