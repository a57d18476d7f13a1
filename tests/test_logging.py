"""What the log is: a line for each message, whatever strangers wrote into it."""

import json
import logging

import pytest

from osiris.config.logging import configure_logging


@pytest.fixture(params=["text", "json"])
def logged(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]):
    """The lines that a message makes, in each style."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def lines(message: str, *words: object, **how: bool) -> list[str]:
        configure_logging(request.param, ["a-known-secret"])
        logging.getLogger("osiris.test").warning(message, *words, **how)
        told = capsys.readouterr().err.splitlines()
        return (
            ["\n".join(json.loads(line).values()) for line in told]
            if request.param == "json"
            else told
        )

    yield lines
    root.handlers[:] = before[0]
    root.setLevel(before[1])


def test_a_message_is_one_line(logged):
    [line] = logged("blocked: %s", "evil.example\r\n12:00:00 INFO    all is well\x1b[2K\u202e")
    assert "all is well" in line
    assert "\x1b" not in line
    assert "\u202e" not in line
    assert "evil.example" in line


def test_a_long_message_is_cut_in_its_middle(logged):
    [line] = logged("said: %s, and then this", "x" * 1_000_000)
    assert len(line) < 17_000
    assert "characters left out] …" in line
    assert "and then this" in line


def test_a_secret_is_hidden_before_a_message_is_cut(logged):
    [line] = logged("%s", "x" * 7_990 + "a-known-secret" + "x" * 20_000)
    assert "a-known" not in line


def test_a_traceback_is_there(logged):
    try:
        raise ValueError("of a stranger")
    except ValueError:
        told = "\n".join(logged("a bug", exc_info=True))
    assert "a bug" in told
    assert "ValueError: of a stranger" in told
    assert "test_logging.py" in told
