"""Comments in Markdown that GitHub does not render: people cannot see what they say.

What people see (in a code block, in a code span) stays. Where it is not certain that they see it,
it counts as hidden: whoever removes it says so.
"""

import re

_TOKEN = re.compile(
    r"(?m)(?P<fence>^(?P<indent> {0,3})(?P<mark>`{3,}|~{3,})(?P<info>[^\n]*)$)"
    r"|(?P<definition>^ {0,3}\[[^\]\n]+\]:[ \t]*(?:\#|<>)[ \t]+"
    r"(?:\"[^\"\n]*\"|'[^'\n]*'|\([^)\n]*\))[ \t]*$)"
    r"|(?P<comment><!--)|(?P<ticks>`+)|(?P<blank>^[ \t]*$)|(?P<tag><[A-Za-z/!?])"
)
_LINE_START = re.compile(r"(?:^|\n)[ \t>*+\-\d.)]*\Z")
_RAW = re.compile(r"(?i)<(?:pre|script|style|textarea|[!?])")


def strip_comments(text: str) -> tuple[str, int]:
    """Return Markdown without comments that are not rendered, and their number.

    https://spec.commonmark.org/0.31.2/#html-blocks. Takes time in proportion to the text.
    """
    if "<!--" not in text and "]:" not in text:
        return text, 0
    return _Scan(text).run()


class _Scan:
    """One pass over a text. Backticks mean code only in a paragraph without HTML tags, and within
    one line; after the tag of a raw block, such as `<pre>`, nothing does."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._kept: list[str] = []
        self._since = 0  # where the text begins that is not in `_kept` yet
        self._found = 0
        self._has_tags = False
        self._is_raw = False
        self._unclosed: dict[int, int] = {}  # length of backticks -> end of the line without more

    def run(self) -> tuple[str, int]:
        position = 0
        while position <= len(self._text):
            token = _TOKEN.search(self._text, position)
            if token is None:
                break
            position = self._pass_token(token)
        self._kept.append(self._text[self._since :])
        return "".join(self._kept), self._found

    def _pass_token(self, token: re.Match[str]) -> int:
        """Return where to go on after a token."""
        match token.lastgroup:
            case "blank":
                self._has_tags = False
                return token.end() + 1
            case "definition":
                return self._remove(token.start(), token.end())
            case "comment":
                return self._pass_comment(token.start())
            case "tag":
                self._has_tags = True
                self._is_raw = self._is_raw or bool(_RAW.match(self._text, token.start()))
                return token.end()
            case "ticks":
                return self._pass_code_span(token)
        return self._pass_fence(token)

    def _remove(self, start: int, end: int) -> int:
        self._kept.append(self._text[self._since : start])
        self._since = end
        self._found += 1
        return end

    def _pass_comment(self, start: int) -> int:
        end = self._text.find("-->", start + 2)
        if end >= 0:
            return self._remove(start, end + 3)
        line = self._text.rfind("\n", 0, start) + 1
        if _LINE_START.search(self._text[line:start]):
            return self._remove(start, len(self._text))
        self._has_tags = True
        return start + 4

    def _pass_code_span(self, token: re.Match[str]) -> int:
        start, end = token.span()
        is_escaped = self._text[start - 1 : start] == "\\"
        length = end - start
        if self._has_tags or self._is_raw or is_escaped or self._unclosed.get(length, -1) >= end:
            return end
        line_end = self._text.find("\n", end)
        line_end = len(self._text) if line_end < 0 else line_end
        closing = re.compile(rf"(?<!`)`{{{length}}}(?!`)").search(self._text, end, line_end)
        if closing is None:
            self._unclosed[length] = line_end
            return end
        # a bar ends a table's cell, and with it the code
        return end if "|" in self._text[end : closing.start()] else closing.end()

    def _pass_fence(self, token: re.Match[str]) -> int:
        """Return the end of a code block. It also ends before a line with a smaller indentation,
        which may have ended the list that it is in."""
        mark = token["mark"]
        if self._has_tags or self._is_raw or (mark[0] == "`" and "`" in token["info"]):
            return token.end()
        indent = len(token["indent"])
        ends = rf"^ {{0,3}}{mark[0]}{{{len(mark)},}}[ \t]*$"
        if indent:
            ends += rf"|^(?= {{0,{indent - 1}}}[^ \n])"
        ending = re.compile(f"(?m){ends}").search(self._text, token.end())
        return len(self._text) if ending is None else ending.end()
