"""Parser of commands in comments: `/osiris …` or a mention, at the start of a line."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from markdown_it import MarkdownIt

_markdown = MarkdownIt("commonmark")
_MOST = 20_000  # characters of a comment that are read: hostile Markdown takes up to 0.1 ms each
_MOST_REST = 300  # characters of what follows a command
KNOWN = ("stop", "retry", "model", "status", "help")
_STARTING = ("", "retry")  # commands that start work
_PUNCTUATION = " \t,.:;!-–—"
_STOP = re.compile(r"\bstop", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class UserCommand:
    """A command in a comment. `name` is "" for the bare `/osiris`, `rest` is the rest of the line;
    `known` is False for words that are no command."""

    name: str
    known: bool = True
    rest: str = ""


def find_command(text: str, bot: str) -> UserCommand | None:
    """Return the first command in a comment, or None. Quotes, code and HTML comments are not
    commands.

    `bot` is the bot's login; both `@osiris` and `@osiris[bot]` address it. Only the first 20,000
    characters are read. A comment in which no line begins with an address is not parsed. Parsing
    can take long, so callers must not run it in the event loop.
    """
    name = re.escape(bot.removesuffix("[bot]"))
    # neither a longer name or path, nor "@osiris's last pull request"
    address = re.compile(
        rf"(?:/osiris|@{name}(?:\[bot\])?+)(?![\w/-]|['’]\w)([^\n]*)", re.IGNORECASE
    )
    text = text[:_MOST].replace("\r\n", "\n").replace("\r", "\n")
    if not re.search(rf"^[ \t]*{address.pattern}", text, re.IGNORECASE | re.MULTILINE):
        return None
    for line in _read_lines(text):
        if match := address.match(line):
            return _parse_command(match[1].strip())
    return None


def _parse_command(words: str) -> UserCommand:
    """Return the command in the words after an address.

    A bare command starts work, so it has nothing but punctuation behind it. Words that are unclear
    (another word first, a word in code, bold or quotes, an emoji, "retry, no, stop") are an unknown
    command, which is answered with help.
    """
    words = words.lstrip(_PUNCTUATION)
    word, *rest = re.split(r"[^\w-]", words, maxsplit=1)
    name = word.lower()
    is_known = name in KNOWN or not words
    if not is_known or (name in _STARTING and _STOP.search(words)):
        return UserCommand(words.replace("\0", "*")[:_MOST_REST], known=False)
    return UserCommand(name, rest="".join(rest).strip()[:_MOST_REST])


def _read_lines(text: str) -> Iterator[str]:
    """Yield the lines of plain paragraphs at the top level."""
    tokens = _markdown.parse(text)
    for opening, inline in pairwise(tokens):
        if opening.type == "paragraph_open" and opening.level == 0:
            line = ""
            for child in inline.children or []:
                if child.type in ("softbreak", "hardbreak"):
                    yield line
                    line = ""
                else:
                    line += child.content if child.type == "text" else "\0"
            yield line
