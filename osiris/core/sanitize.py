"""Untrusted text, made safe to show to people, models, terminals and logs.

There is one list of hidden characters for the whole product: what a model, a reviewer, a terminal
or a file name must not carry unseen. Every function takes time in proportion to its input.
"""

import re
from typing import Final

_INVISIBLE: Final = (
    # Default_Ignorable_Code_Point of Unicode 16, DerivedCoreProperties.txt: drawn as nothing
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f"
    "\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff"
    "\u2028\u2029\ufff9-\ufffb"  # separators of lines and paragraphs; annotations
    "\u2800"  # a pattern of Braille without dots
)
_SURROGATES: Final = "\ud800-\udfff"
_CONTROLS: Final = "\x00-\x1f\x7f-\x9f"  # C0 and C1
_CONTROLS_BUT_TAB_AND_NEWLINE: Final = "\x00-\x08\x0b-\x1f\x7f-\x9f"
_JOINERS: Final = "\u200c\u200d\ufe0e\ufe0f"
"""What some scripts, and emoji, are written with: allowed in file names."""

_UNNOTICED: Final = f"\r{_JOINERS}"
"""Characters that are removed and not counted: parts of line ends, emoji and some scripts."""

_SEQUENCES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI
    # DCS SOS OSC PM APC, in a line
    r"|(?:\x1b[PX^_\]]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c|$)?"
    r"|\x1b[ -/]*[0-~]"  # two-character escapes
)
# without the look-behind a run of returns takes quadratic time
_RETURNS: Final = re.compile(r"(?<!\r)\r+\n")
_HIDDEN: Final = re.compile(f"[{_CONTROLS_BUT_TAB_AND_NEWLINE}{_INVISIBLE}{_SURROGATES}]")
_NOT_IN_NAMES: Final = re.compile(f"(?![{_JOINERS}])[{_CONTROLS}{_INVISIBLE}\udc80-\udc9f]")
"""The last are bytes of C1 controls in a name that is not UTF-8 (surrogateescape)."""


def clean_text(raw: bytes | str) -> str:
    """Return `raw` without control sequences and hidden characters.

    Newline and tab stay, CR LF becomes a newline, and bytes that are not UTF-8 become U+FFFD.
    """
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    return _HIDDEN.sub("", _SEQUENCES.sub("", _RETURNS.sub("\n", text)))


def count_hidden(text: str) -> int:
    """Return the number of characters that `clean_text` removes and people cannot see, without the
    joiners of some scripts and of emoji."""
    return sum(found[0] not in _UNNOTICED for found in _HIDDEN.finditer(text))


def show_hidden(line: str) -> str:
    """Return `line` with everything spelled out that `clean_text` removes, such as `<U+200B>`."""
    return _HIDDEN.sub(_escape_character, line)


def has_hidden(name: str) -> bool:
    """Return whether a file name contains a control character or an invisible one.

    The joiners of some scripts and of emoji are allowed. `name` may hold surrogate escapes.
    """
    return _NOT_IN_NAMES.search(name) is not None


def cut_text(text: str, most: int) -> str:
    """Return at most `most` characters of `text`; a mark says how many more there were."""
    if len(text) <= most:
        return text
    return f"{text[:most]}… [{len(text) - most} more characters]"


def _escape_character(found: re.Match[str]) -> str:
    character = found[0]
    return "^M" if character == "\r" else f"<U+{ord(character):04X}>"
