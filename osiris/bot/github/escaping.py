"""Escaping of foreign text for Markdown and for commits, and limits on its length."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from osiris.core.sanitize import clean_text

MOST_QUOTED: Final = 8_000  # characters of a quotation
MOST_LINE: Final = 2_000  # characters of a written reason
MOST_NAMES: Final = 10  # people in a list
_JOINER: Final = "\u2060"  # the word joiner: invisible, it breaks up the reference around it
_CUT: Final = "\n> … cut: it was longer."


def escape_markdown(text: str) -> str:
    """Return foreign text for Markdown: `disarm_text`, without HTML, entities, links and images."""
    text = re.sub(r"<!--.*?(?:-->|\Z)", "", clean_text(text), flags=re.DOTALL)
    text = text.replace("&", "&amp;").replace("<", "&lt;")
    text = re.sub(r"\](?=[(\[:])", f"]{_JOINER}", text)
    text = re.sub(r"\[(?=\^)", f"[{_JOINER}", text)
    return _break_references(text)


def disarm_text(text: str) -> str:
    """Return foreign text that mentions nobody and closes nothing. It still looks the same."""
    return _break_references(clean_text(text))


def _break_references(text: str) -> str:
    text = re.sub(r"@(?=[A-Za-z0-9])", f"@{_JOINER}", text)
    text = re.sub(r"(?i)(#|\bGH-)(?=\d)", f"\\1{_JOINER}", text)
    text = re.sub(r"(?i)\b(\w+:)(?=//)", f"\\1{_JOINER}", text)
    return re.sub(r"(?i)\b(www|mailto:|xmpp:)(?=[.\w])", f"\\1{_JOINER}", text)


def format_title(text: str) -> str:
    """Return foreign text as one line: a pull request's title or a commit's subject."""
    return " ".join(disarm_text(text).split())


def quote_text(text: str) -> str:
    """Return foreign text as a quotation of at most MOST_QUOTED characters."""
    lines = re.sub(r"\n\s*\n+", "\n\n", escape_markdown(text).strip()).splitlines()
    quotation = "\n".join(f"> {line}" for line in lines)
    if len(quotation) > MOST_QUOTED:
        return quotation[: MOST_QUOTED - len(_CUT)] + _CUT
    return quotation or "> (nothing)"


def one_line(words: str, most: int = MOST_LINE) -> str:
    """Return foreign text for Markdown as half a sentence of at most `most` characters."""
    return clip_text(" ".join(escape_markdown(words).split()).rstrip("."), most)


def escape_code(text: str, most: int = 160) -> str:
    """Return foreign text for a code span, also in a table."""
    return clip_text(" ".join(clean_text(text).split()).replace("`", "'").replace("|", "\\|"), most)


def name_people(logins: Iterable[str]) -> str:
    """Return the names in a row, each once, and how many more there are."""
    names = list(dict.fromkeys(logins))
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(clip_text(name, 100) for name in names[:MOST_NAMES]) + more


def clip_text(text: str, most: int) -> str:
    """Return at most `most` characters of a text; the last one says when it was cut."""
    return text if len(text) <= most else text[: most - 1] + "…"


def clip_page(text: str, room: int) -> str:
    """Return at most `room` characters of Markdown; a paragraph says when it was cut."""
    note = "\n\n… cut: it was longer than GitHub takes."
    return text if len(text) <= room else text[: max(0, room - len(note))] + note


def fit_rows(rows: Sequence[str], room: int) -> list[str]:
    """Return the first rows that take at most `room` characters with their line ends."""
    fitting: list[str] = []
    for row in rows:
        room -= len(row) + 1
        if room < 0:
            break
        fitting.append(row)
    return fitting
