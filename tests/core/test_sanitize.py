"""Untrusted text: what is removed from it, what is shown, and what stays."""

import pytest

from osiris.core.sanitize import clean_text, cut_text, has_hidden, show_hidden


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("one\ttwo\nthree", "one\ttwo\nthree"),
        (b"caf\xc3\xa9 \xff", "café \ufffd"),
        ("a\r\nb\r\r\nc\rd", "a\nb\ncd"),
        ("\x1b[31mred\x1b[0m and \x9b1mbold", "red and bold"),
        ("\x1b]0;a title\x07text \x1bPdevice\x1b\\more", "text more"),
        ("\x1b]never ends\nbut the line does", "\nbut the line does"),
        ("in\u200bvi\u3164si\U000e0041ble\u202e", "invisible"),
        ("one\ud800two", "onetwo"),
    ],
)
def test_text_of_strangers_comes_clean(raw: bytes | str, clean: str):
    assert clean_text(raw) == clean


def test_what_is_hidden_is_written_out():
    assert show_hidden("a\u200bb\r\U000e0041") == "a<U+200B>b^M<U+E0041>"


@pytest.mark.parametrize("name", ["plain.py", "नमस्\u200dते.md", "heart\u2764\ufe0f"])
def test_names_that_people_write_hide_nothing(name: str):
    assert not has_hidden(name)


@pytest.mark.parametrize("name", ["a\tb", "a\u200bb", "a\U000e0041", "a\x9b", "a\udc9b"])
def test_a_name_with_something_unseen_is_told(name: str):
    assert has_hidden(name)


def test_a_text_that_is_cut_says_how_much():
    assert cut_text("short", 5) == "short"
    assert cut_text("longer", 4) == "long… [2 more characters]"
