"""The conversion of people's Markdown to HTML: comments stay hidden, and only harmless HTML tags
are kept."""

import re
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from markupsafe import Markup, escape

COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
KEPT = re.compile(r"(</?(?:details|summary|sub|sup|kbd)>|<br ?/?>)", re.IGNORECASE)
BOX = re.compile(r"<li>(<p>)?\[([ xX])\] ")


class _Renderer(RendererHTML):
    """A renderer that keeps raw HTML only for bare tags of a short list; everything else becomes
    text."""

    def html_block(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType
    ) -> str:
        return _sanitize_html(tokens[idx].content)

    def html_inline(
        self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType
    ) -> str:
        return _sanitize_html(tokens[idx].content)


_reader = MarkdownIt("commonmark", {"html": True}, renderer_cls=_Renderer).enable(
    ["table", "strikethrough"]
)


def _sanitize_html(html: str) -> str:
    parts = KEPT.split(COMMENT.sub("", html))
    return "".join(part.lower() if KEPT.fullmatch(part) else str(escape(part)) for part in parts)


def _format_checkbox(match: re.Match[str]) -> str:
    mark = "☐" if match[2] == " " else "☑"
    return f'<li class="task">{match[1] or ""}<span class="box">{mark}</span> '


def render_html(text: str) -> Markup:
    """Return a text as safe HTML."""
    return Markup(BOX.sub(_format_checkbox, _reader.render(text)))  # noqa: S704 — the renderer above escapes what it was given
