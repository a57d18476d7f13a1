"""Hostile text for everything that reads it on the host: it takes time in proportion to the text,
whatever is in it.

Time is that of the processor, and is compared with itself at half the size, or with a plain search
of the same text in the same run, so that no machine is too slow for these tests.
"""

import ast
import functools
import importlib
import itertools
import random
import re
import re._constants as codes
import re._parser as parser
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from osiris.agents import briefing
from osiris.bot.git.runner import GitCommandFailed, escape_path, translate_failure
from osiris.bot.github import commands, comments
from osiris.config import copilot_setup, repository_file
from osiris.core.decide.requests import branch_name
from osiris.core.errors import OsirisError
from osiris.core.redaction import Redactor
from osiris.core.sanitize import clean_text, has_hidden, show_hidden
from osiris.tools.sandbox.network.proxy_request import parse_request
from osiris.tools.sandbox.network.tls_client_hello import ProtocolRejected

SIZE = 1 << 18  # characters
GITHUB = 1 << 16  # characters that GitHub takes in an issue or a comment
PIECES = [
    *(
        "\r",
        "\n",
        " ",
        "\t",
        "a",
        "1",
        "-",
        "[",
        "<",
        "(",
        "`",
        "*",
        "\\",
        "\x1b",
        "\x9b",
        "é",
        "\u200b",
        "\udcff",
    ),
    *(
        "\r\n",
        "sk",
        "![",
        "](",
        "<!",
        "</",
        "- ",
        "> ",
        "@a",
        "#1",
        "a:",
        "{a",
        "..",
        "a\n",
        "1:",
        "\x1b[",
        "\x1b]",
    ),
    *(
        "sk-",
        "eyJ",
        "www",
        "-->",
        "[a]",
        "::1",
        "GH-",
        "//a",
        "\n a",
        "eyJ.",
        "<!--",
        "sk-1",
        "a://",
        "\x1b[0;",
        "gh_-",
    ),
]
READERS: Mapping[str, Callable[[str], object]] = {
    "cleaning": clean_text,
    "showing what is hidden": show_hidden,
    "a file name": has_hidden,
    "redaction": Redactor(["a-known-secret", "another one of them"]),
    "commands of a comment": lambda text: commands.find_command(text, "osiris[bot]"),
    "commands of a comment that has one": lambda text: commands.find_command(
        f"`\n/osiris\n`\n\n{text}", "osiris[bot]"
    ),
    "words for Markdown": comments.escape_markdown,
    "words for a commit": comments.disarm_text,
    "a title": comments.format_title,
    "a quotation": comments.quote_text,
    "the brief": briefing._escape_tags,
    "a policy file": lambda text: repository_file.parse_policy(f"label: {text}"),
    "set-up steps": lambda text: copilot_setup.parse_steps(f"jobs: {text}"),
    "the name of a branch": lambda text: branch_name(1, text, 1),
    "a request to the proxy": lambda text: parse_request(text.encode("latin-1", "replace")),
    "git's words": lambda text: translate_failure(GitCommandFailed("fetch", text), "fetch"),
    "a path": lambda text: escape_path(text.encode("utf-8", "surrogateescape")),
}
SIZES = {"commands of a comment that has one": 1 << 14}
SIZES |= {name: GITHUB for name in READERS if name.startswith(("words", "a title", "a quotation"))}
"""Characters for those that are slow, and read only what GitHub has taken."""
EXPECTED = (OsirisError, ProtocolRejected)


def seconds(read: Callable[[str], object], text: str) -> float:
    """The processor's time to read a text."""
    began = time.thread_time()
    with suppress(*EXPECTED):
        read(text)
    return time.thread_time() - began


def takes_linear_time(read: Callable[[str], object], text: str) -> bool:
    """Whether reading all of a text takes less than eight times the time of its quarter: quadratic
    time is sixteen times as much. It is asked up to three times, and about a short part first, for
    what is much too slow must not be waited for."""
    return all(
        any(_is_linear(read, text[:size]) for _ in range(3)) for size in (1 << 14, len(text))
    )


def _is_linear(read: Callable[[str], object], text: str) -> bool:
    return seconds(read, text) <= 8 * seconds(read, text[: len(text) // 4]) + 0.005


@functools.cache
def sees_quadratic_time() -> bool:
    return not takes_linear_time(lambda text: re.sub(r"\r+\n", "", text), "\r" * GITHUB)


def mixtures() -> Iterator[str]:
    drawn = random.Random(7)
    for _ in range(5):
        some = drawn.sample(PIECES, 6)
        yield "".join(drawn.choices(some, k=SIZE))


@pytest.mark.parametrize("name", READERS)
def test_text_is_read_in_linear_time(name, verdict):
    size = SIZES.get(name, SIZE)
    texts = [text[:size] for text in (*(piece * SIZE for piece in PIECES), *mixtures())]
    slow = [text[:12] for text in texts if not takes_linear_time(READERS[name], text)]
    assert slow == []
    assert sees_quadratic_time(), "the measure is broken"
    verdict(f"{len(texts)} texts of {size >> 10} KiB", "a quadratic pattern is seen")


# ── every regular expression ──────────────────────────────────────────────────────────────────────

ROOT = Path(__file__).parents[2] / "osiris"
NOT_STRANGERS: Mapping[str, str] = {
    "config/settings": "the operator's settings",
    "console": "the operator's words",
    "playground": "ours",
    "devhub": "the make-believe GitHub",
    "local": "the words of the person at the terminal",
    "queue/migrations": "ours",
    "tools/sandbox/guest/file_helper": "runs in the jail",
    "tools/sandbox/disks/mounts": "the kernel's words",
    "tools/sandbox/jail/process": "bubblewrap's words",
    "tools/sandbox/network/package_registries": "the words of the machine's own tools",
}
LENGTH = 1 << 14
USES = {"match": "match", "fullmatch": "fullmatch"}
USES |= dict.fromkeys(("search", "sub", "subn", "split", "findall", "finditer"), "search")
"""What a pattern is used for, and how it is asked here: a search begins at every character."""


def patterns() -> Iterator[tuple[str, str, int, str]]:
    """(place, pattern, flags, method) of all that are written in the code, or compiled when it is
    loaded."""
    for path in sorted(ROOT.rglob("*.py")):
        place = str(path.relative_to(ROOT).with_suffix(""))
        if not any(place == name or place.startswith(f"{name}/") for name in NOT_STRANGERS):
            source = path.read_text()
            yield from ((place, *found) for found in {*_written(source), *_compiled(place, source)})


def _written(source: str) -> Iterator[tuple[str, int, str]]:
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        of_re = isinstance(node.func.value, ast.Name) and node.func.value.id == "re"
        first = node.args[0]
        if (
            of_re
            and node.func.attr in USES
            and isinstance(first, ast.Constant)
            and isinstance(first.value, str)
        ):
            yield first.value, 0, USES[node.func.attr]


def _compiled(place: str, source: str) -> Iterator[tuple[str, int, str]]:
    module = (
        importlib.import_module(f"osiris.{place.replace('/', '.')}")
        if place != "__main__"
        else None
    )
    for name, value in vars(module).items() if module else ():
        if isinstance(value, re.Pattern):
            text = (
                value.pattern if isinstance(value.pattern, str) else value.pattern.decode("latin-1")
            )
            used = {
                USES[use] for use in re.findall(rf"\b{name}\.(\w+)\(", source) if use in USES
            } or {"search"}
            flags = value.flags & (re.IGNORECASE | re.MULTILINE | re.DOTALL)
            yield from ((text, flags, use) for use in used)


def words_of(pattern: str, flags: int) -> list[str]:
    """Short words that a pattern can begin, go on and end with: its literals, one of each of its
    sets, and pairs."""
    atoms = list(dict.fromkeys(_atoms(parser.parse(pattern, flags))))
    runs = [
        "".join(run)
        for whole, run in itertools.groupby(_literals(parser.parse(pattern, flags)), bool)
        if whole
    ]
    pairs = [a + b for a, b in itertools.product(atoms[:7], repeat=2) if a != b]
    return list(dict.fromkeys(["\n", " ", *runs, *atoms[:20], *pairs]))


def _atoms(parsed: object) -> Iterator[str]:
    return (atom for atom in _literals(parsed) if atom)


def _literals(parsed: object) -> Iterator[str]:
    """The characters of a parsed pattern; "" where a literal run ends."""
    for code, value in parsed:
        match code:
            case codes.LITERAL:
                yield chr(value)
            case codes.NOT_LITERAL:
                yield from ("", "a" if value != ord("a") else "b", "")
            case codes.IN:
                yield from ("", *_samples(value), "")
            case codes.ANY:
                yield from ("", "x", "")
            case codes.BRANCH:
                for branch in value[1]:
                    yield from ("", *_literals(branch), "")
            case codes.SUBPATTERN:
                yield from ("", *_literals(value[3]), "")
            case codes.ATOMIC_GROUP:
                yield from ("", *_literals(value), "")
            case codes.MAX_REPEAT | codes.MIN_REPEAT | codes.POSSESSIVE_REPEAT:
                yield from ("", *_literals(value[2]), "")
            case codes.ASSERT | codes.ASSERT_NOT:
                yield from ("", *_literals(value[1]), "")


def _samples(items: list) -> Iterator[str]:
    kinds = {codes.CATEGORY_DIGIT: "7", codes.CATEGORY_SPACE: " ", codes.CATEGORY_WORD: "w"}
    if (codes.NEGATE, None) in items:
        yield next(letter for letter in "ax0-" if not re.search(f"[{letter}]", str(items[1:])))
        return
    for code, value in items[:4]:
        if code is codes.LITERAL:
            yield chr(value)
        elif code is codes.RANGE:
            yield chr(value[0])
        elif code is codes.CATEGORY:
            yield kinds.get(value, "%")


def slowest(pattern: str, flags: int, method: str) -> tuple[float, str]:
    """How many times longer than a plain search of the same text the pattern takes at worst, and
    for which word.

    The texts grow from a few characters, for a pattern of exponential time must not be waited for.
    """
    asked = getattr(re.compile(pattern, flags), method)
    plain = re.compile("[q-z]\x01")
    worst = (0.0, "")
    for word in words_of(pattern, flags):
        usual = max(seconds(plain.search, (word * LENGTH)[:LENGTH]), 1e-5)
        for size in (16, 24, 28, 256, 2048, LENGTH):
            text = (word * size)[:size] + "\x00"
            taken = seconds(asked, text)
            if taken > TOO_SLOW * usual:
                taken = min(seconds(asked, text), taken)
            worst = max(worst, (taken / usual, word))
            if worst[0] > TOO_SLOW:
                return worst
    return worst


TOO_SLOW = 500.0
ROWS = sorted(set(patterns()))


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0]}-{n}" for n, row in enumerate(ROWS)])
def test_a_regular_expression_takes_linear_time(row, verdict):
    place, pattern, flags, method = row
    times, word = slowest(pattern, flags, method)
    assert times <= TOO_SLOW, (
        f"{place}: {pattern} takes {times:.0f} times a plain search of {word!r}"
    )
    verdict("in proportion to the text", "the planted ones are found")


PLANTED = [r"\r+\n", r"\bsk-(?=[\w-]*\d)[\w-]{20,}", r"(?:a+)+b", r".*requirements.*\.txt"]


@pytest.mark.parametrize("pattern", PLANTED)
def test_a_planted_slow_pattern_is_found(pattern, verdict):
    assert slowest(pattern, 0, "search")[0] > TOO_SLOW
    verdict("found", "it was planted")


def test_all_that_is_left_out_is_there():
    """A place that has gone must not stay on the list."""
    assert [
        name
        for name in NOT_STRANGERS
        if not ((ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file())
    ] == []
