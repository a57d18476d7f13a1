"""Making what a stranger printed harmless to a terminal, a log, a comment and a model."""

import re

_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # CSI
    r"|(?:\x1b[PX^_\]]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c|$)?"  # DCS SOS OSC PM APC, in a line
    r"|\x1b[ -/]*[0-~]"  # two-character escapes
)
_RETURNS = re.compile(r"\r+\n")
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 and C1, but tab and newline
    "\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # bidi, zero width, BOM, annotation
    "\U000e0000-\U000e007f]"  # tags: invisible letters
    "|[\ud800-\udfff]"
)


def visible(line: str) -> str:
    """A line in which nothing is hidden: what `clean_text` takes out is written out, for people who must see it all."""
    return _FORBIDDEN.sub(lambda found: "^M" if found[0] == "\r" else f"<U+{ord(found[0]):04X}>", line)


def clean_text(raw: bytes | str) -> str:
    """`raw` without control sequences and invisible characters; newline and tab stay, invalid UTF-8 is replaced."""
    text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    return _FORBIDDEN.sub("", _SEQUENCES.sub("", _RETURNS.sub("\n", text)))
