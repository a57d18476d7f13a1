"""Comments in Markdown: what people cannot see is taken out, what they see stays."""

import pytest

from osiris.core.markdown_comments import strip_comments


@pytest.mark.parametrize(
    ("text", "shown", "count"),
    [
        ("plain", "plain", 0),
        ("a<!-- b -->c", "ac", 1),
        ("a<!-- b\n\nc -->d<!--e-->", "ad", 2),
        ("a<!-->b", "ab", 1),
        ("<!-- never closed", "", 1),
        ("> - <!-- never closed", "> - ", 1),
        ("in a line <!-- never closed", "in a line <!-- never closed", 0),
        ("[//]: # (hidden)\nseen", "\nseen", 1),
        ("[//]: # (hidden)\n", "\n", 1),
        ('[note]: <> "hidden"', "", 1),
        ("see [it]: later", "see [it]: later", 0),
        ("`<!-- seen -->`", "`<!-- seen -->`", 0),
        ("``a ` <!-- seen -->``", "``a ` <!-- seen -->``", 0),
        ("\\`<!-- hidden -->`", "\\``", 1),
        ("`one <!-- hidden -->", "`one ", 1),
        ("`one `` <!-- hidden --> `` ``` <!-- hidden -->", "`one `` <!-- hidden --> `` ``` ", 1),
        ("`a\n<!-- hidden -->`", "`a\n`", 1),
        ("`a | <!-- hidden -->`", "`a | `", 1),
        ("<b>`<!-- hidden -->`</b>", "<b>``</b>", 1),
        ("<b>\n\n`<!-- seen -->`", "<b>\n\n`<!-- seen -->`", 0),
        ("<pre>\n\n`<!-- hidden -->`", "<pre>\n\n``", 1),
        ("```\n<!-- seen -->\n```\n<!-- hidden -->", "```\n<!-- seen -->\n```\n", 1),
        ("~~~ text\n<!-- seen -->\n", "~~~ text\n<!-- seen -->\n", 0),
        ("``` a`b\n<!-- hidden -->\n```", "``` a`b\n\n```", 1),
        ("<div>\n```\n<!-- hidden -->\n```", "<div>\n```\n\n```", 1),
        ("  ```\n  <!-- seen -->\nout <!-- hidden -->", "  ```\n  <!-- seen -->\nout ", 1),
    ],
)
def test_what_is_not_rendered_is_taken_out(text: str, shown: str, count: int):
    assert strip_comments(text) == (shown, count)
