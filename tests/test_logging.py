"""Log lines: one line for each message, whatever untrusted text the message contains."""

import json
import logging

import pytest

from osiris.config.logging import configure_logging


@pytest.fixture(params=["text", "json"])
def write_log(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]):
    """Provide a function that logs a message and returns the written lines, in each format."""
    root = logging.getLogger()
    root_state = root.handlers[:], root.level

    def write_message(message: str, *args: object, **options: bool) -> list[str]:
        configure_logging(request.param, ["a-known-secret"])
        logging.getLogger("osiris.test").warning(message, *args, **options)
        lines = capsys.readouterr().err.splitlines()
        return (
            ["\n".join(json.loads(line).values()) for line in lines]
            if request.param == "json"
            else lines
        )

    yield write_message
    root.handlers[:] = root_state[0]
    root.setLevel(root_state[1])


def test_a_message_is_one_line(write_log):
    [line] = write_log("blocked: %s", "evil.example\r\n12:00:00 INFO    all is well\x1b[2K\u202e")
    assert "all is well" in line
    assert "\x1b" not in line
    assert "\u202e" not in line
    assert "evil.example" in line


def test_a_long_message_is_cut_in_its_middle(write_log):
    [line] = write_log("said: %s, and then this", "x" * 1_000_000)
    assert len(line) < 17_000
    assert "characters left out] …" in line
    assert "and then this" in line


def test_a_secret_is_hidden_before_a_message_is_cut(write_log):
    [line] = write_log("%s", "x" * 7_990 + "a-known-secret" + "x" * 20_000)
    assert "a-known" not in line


def test_a_traceback_is_there(write_log):
    try:
        raise ValueError("of a stranger")
    except ValueError:
        text = "\n".join(write_log("a bug", exc_info=True))
    assert "a bug" in text
    assert "ValueError: of a stranger" in text
    assert "test_logging.py" in text
