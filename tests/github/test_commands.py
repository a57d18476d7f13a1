"""Commands in comments: what addresses Osiris, what is a command, and what is unclear."""

import pytest

from osiris.bot.github.commands import UserCommand, find_command


@pytest.mark.parametrize(
    "text",
    [
        "> /osiris stop",
        "```\n/osiris stop\n```",
        "    /osiris stop",
        "I would not say /osiris stop here",
        "<!-- /osiris stop -->",
        "`/osiris stop`",
        "- /osiris stop",
        "/osirisstop",
        "/osiris/stop",
        "@osiris-bot stop",
        "@osiris's last pull request broke the build",
        "@osiris\u2019s last pull request broke the build",
        "@osiris[bot]'s comment above is right",
    ],
)
def test_words_that_do_not_address_osiris_are_no_command(text: str):
    assert find_command(text, "osiris[bot]") is None


@pytest.mark.parametrize(
    ("text", "name", "rest"),
    [
        ("/osiris", "", ""),
        ("@osiris", "", ""),
        ("/osiris!", "", ""),
        ("/osiris.", "", ""),
        ("/Osiris STOP please", "stop", "please"),
        ("/osiris: stop", "stop", ""),
        ("/osiris - stop", "stop", ""),
        ("/osiris, stop.", "stop", ""),
        ("@osiris: Stop!", "stop", ""),
        ("Thanks!\n/osiris retry", "retry", ""),
        ("Hello\n\n@osiris status", "status", ""),
        ("@osiris[bot] help", "help", ""),
        ("/osiris model openai:gpt-5 ", "model", "openai:gpt-5"),
    ],
)
def test_a_command_is_the_first_word_after_the_address(text: str, name: str, rest: str):
    assert find_command(text, "osiris[bot]") == UserCommand(name, rest=rest)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/osiris dance now", "dance now"),
        ("/osiris `stop`", "*"),
        ("/osiris **stop**", "*stop*"),
        ("@osiris, please stop.", "please stop."),
        ("@osiris \U0001f44e", "\U0001f44e"),
        ("@osiris ?", "?"),
        ("/osiris (stop)", "(stop)"),
        ("/osiris retry? No, stop.", "retry? No, stop."),
        ("/osiris retry only after I stopped the server", "retry only after I stopped the server"),
        ("@osiris don't", "don't"),
    ],
)
def test_unclear_words_are_an_unknown_command_and_start_nothing(text: str, words: str):
    assert find_command(text, "osiris[bot]") == UserCommand(words, known=False)
