"""Hostile text for everything that reads untrusted text on the host: each reader must take time in
proportion to the length of the text, whatever its content.

The tests measure processor time. They compare it with the time for a part of the text, or for a
plain search of the same text in the same run, so that no machine is too slow for them.
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

from osiris.bot.git.failures import translate_failure
from osiris.bot.git.runner import GitCommandFailed, escape_path
from osiris.bot.github import commands, comments
from osiris.config import copilot_setup, repository_file
from osiris.core import brief_text
from osiris.core.decide.requests import branch_name
from osiris.core.errors import OsirisError
from osiris.core.redaction import Redactor
from osiris.core.sanitize import clean_text, has_hidden, show_hidden
from osiris.tools.sandbox.network.proxy_request import parse_request
from osiris.tools.sandbox.network.tls_client_hello import ProtocolRejected

SIZE = 1 << 18  # characters
GITHUB_LIMIT = 1 << 16  # characters that GitHub accepts in an issue or a comment
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
    "the brief": brief_text.escape_tags,
    "a policy file": lambda text: repository_file.parse_policy(f"label: {text}"),
    "set-up steps": lambda text: copilot_setup.parse_steps(f"jobs: {text}"),
    "the name of a branch": lambda text: branch_name(1, text, 1),
    "a request to the proxy": lambda text: parse_request(text.encode("latin-1", "replace")),
    "git's words": lambda text: translate_failure(GitCommandFailed("fetch", text), "fetch"),
    "a path": lambda text: escape_path(text.encode("utf-8", "surrogateescape")),
}
SIZES = {"commands of a comment that has one": 1 << 14}
SIZES |= {
    name: GITHUB_LIMIT for name in READERS if name.startswith(("words", "a title", "a quotation"))
}
"""Characters for readers that are slow, and that read only text that GitHub has accepted."""
SLOW_READERS = {
    "showing what is hidden",
    "commands of a comment that has one",
    "words for a commit",
    "a title",
    "a quotation",
    "a path",
}
"""Each takes seconds for all texts; `make test-long` reads them."""
EXPECTED_ERRORS = (OsirisError, ProtocolRejected)


def measure_seconds(read: Callable[[str], object], text: str) -> float:
    """Return the processor time to read a text, in seconds."""
    began = time.thread_time()
    with suppress(*EXPECTED_ERRORS):
        read(text)
    return time.thread_time() - began


def takes_linear_time(read: Callable[[str], object], text: str) -> bool:
    """Return whether to read a text takes at most eight times as long as to read its first quarter;
    a reader of quadratic time takes sixteen times as long. A short part is tried first, because a
    reader that is much too slow would take too long for the whole text. Each part has three
    attempts."""
    return all(
        any(_is_linear(read, text[:size]) for _ in range(3)) for size in (1 << 14, len(text))
    )


def _is_linear(read: Callable[[str], object], text: str) -> bool:
    quarter = text[: len(text) // 4]
    return measure_seconds(read, text) <= 8 * measure_seconds(read, quarter) + 0.005


@functools.cache
def detects_quadratic_time() -> bool:
    """Return whether the measurement finds a pattern of quadratic time on this machine."""
    return not takes_linear_time(lambda text: re.sub(r"\r+\n", "", text), "\r" * GITHUB_LIMIT)


def generate_mixtures() -> Iterator[str]:
    """Yield texts that mix several pieces at random."""
    generator = random.Random(7)
    for _ in range(5):
        pieces = generator.sample(PIECES, 6)
        yield "".join(generator.choices(pieces, k=SIZE))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in SLOW_READERS else ())
        for name in READERS
    ],
)
def test_text_is_read_in_linear_time(name, record_verdict):
    size = SIZES.get(name, SIZE)
    texts = [text[:size] for text in (*(piece * SIZE for piece in PIECES), *generate_mixtures())]
    slow = [text[:12] for text in texts if not takes_linear_time(READERS[name], text)]
    assert slow == []
    assert detects_quadratic_time(), "the measure is broken"
    record_verdict(f"{len(texts)} texts of {size >> 10} KiB", "a quadratic pattern is seen")


# ── every regular expression ──────────────────────────────────────────────────────────────────────

ROOT = Path(__file__).parents[2] / "osiris"
TRUSTED_TEXT: Mapping[str, str] = {
    "config/settings": "the operator's settings",
    "console": "text of the operator",
    "playground": "ours",
    "devhub": "the make-believe GitHub",
    "local": "text of the person at the terminal",
    "queue/migrations": "ours",
    "tools/sandbox/guest/file_helper": "runs in the jail",
    "tools/sandbox/disks/mounts": "text of the kernel",
    "tools/sandbox/jail/process": "text of bubblewrap",
    "tools/sandbox/network/package_registries": "text of this machine's own tools",
}
PATTERN_TEXT_SIZE = 1 << 14
MEASURED_METHODS = {"match": "match", "fullmatch": "fullmatch"}
MEASURED_METHODS |= dict.fromkeys(
    ("search", "sub", "subn", "split", "findall", "finditer"), "search"
)
"""Method of a pattern -> the method that the test measures in its place: a search begins at every
character."""


def find_patterns() -> Iterator[tuple[str, str, int, str]]:
    """Yield (module, pattern, flags, method) of all patterns that the code passes to `re`, or
    compiles when it is imported."""
    for path in sorted(ROOT.rglob("*.py")):
        module = str(path.relative_to(ROOT).with_suffix(""))
        if not any(module == name or module.startswith(f"{name}/") for name in TRUSTED_TEXT):
            source = path.read_text()
            patterns = {*_find_written(source), *_find_compiled(module, source)}
            yield from ((module, *pattern) for pattern in patterns)


def _find_written(source: str) -> Iterator[tuple[str, int, str]]:
    """Yield (pattern, flags, method) of calls such as `re.search("pattern", text)`."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        is_call_of_re = isinstance(node.func.value, ast.Name) and node.func.value.id == "re"
        first = node.args[0]
        if (
            is_call_of_re
            and node.func.attr in MEASURED_METHODS
            and isinstance(first, ast.Constant)
            and isinstance(first.value, str)
        ):
            yield first.value, 0, MEASURED_METHODS[node.func.attr]


def _find_compiled(module_path: str, source: str) -> Iterator[tuple[str, int, str]]:
    """Yield (pattern, flags, method) of the compiled patterns of a module."""
    if module_path == "__main__":
        return
    module = importlib.import_module(f"osiris.{module_path.replace('/', '.')}")
    for name, value in vars(module).items():
        if isinstance(value, re.Pattern):
            text = (
                value.pattern if isinstance(value.pattern, str) else value.pattern.decode("latin-1")
            )
            calls = re.findall(rf"\b{name}\.(\w+)\(", source)
            methods = {MEASURED_METHODS[call] for call in calls if call in MEASURED_METHODS} or {
                "search"
            }
            flags = value.flags & (re.IGNORECASE | re.MULTILINE | re.DOTALL)
            yield from ((text, flags, method) for method in methods)


def build_words(pattern: str, flags: int) -> list[str]:
    """Return short words that a pattern can begin, continue and end with: its literals, one
    character of each of its sets, and pairs of these."""
    atoms = list(dict.fromkeys(_list_literals(parser.parse(pattern, flags))))
    runs = [
        "".join(run)
        for whole, run in itertools.groupby(_walk_literals(parser.parse(pattern, flags)), bool)
        if whole
    ]
    pairs = [a + b for a, b in itertools.product(atoms[:7], repeat=2) if a != b]
    return list(dict.fromkeys(["\n", " ", *runs, *atoms[:20], *pairs]))


def _list_literals(parsed: object) -> Iterator[str]:
    return (atom for atom in _walk_literals(parsed) if atom)


def _walk_literals(parsed: object) -> Iterator[str]:
    """Yield the characters of a parsed pattern, and "" where a run of literals ends."""
    for code, value in parsed:
        match code:
            case codes.LITERAL:
                yield chr(value)
            case codes.NOT_LITERAL:
                yield from ("", "a" if value != ord("a") else "b", "")
            case codes.IN:
                yield from ("", *_sample_set(value), "")
            case codes.ANY:
                yield from ("", "x", "")
            case codes.BRANCH:
                for branch in value[1]:
                    yield from ("", *_walk_literals(branch), "")
            case codes.SUBPATTERN:
                yield from ("", *_walk_literals(value[3]), "")
            case codes.ATOMIC_GROUP:
                yield from ("", *_walk_literals(value), "")
            case codes.MAX_REPEAT | codes.MIN_REPEAT | codes.POSSESSIVE_REPEAT:
                yield from ("", *_walk_literals(value[2]), "")
            case codes.ASSERT | codes.ASSERT_NOT:
                yield from ("", *_walk_literals(value[1]), "")


def _sample_set(items: list) -> Iterator[str]:
    """Yield some characters of a parsed set, such as [a-z_]."""
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


def find_slowest_word(pattern: str, flags: int, method: str) -> tuple[float, str]:
    """Return how many times as long as a plain search of the same text the pattern takes at worst,
    and the word of that text.

    The texts grow from a few characters, because a pattern of exponential time would take too long
    for a long one.
    """
    run_pattern = getattr(re.compile(pattern, flags), method)
    plain_pattern = re.compile("[q-z]\x01")
    worst = (0.0, "")
    for word in build_words(pattern, flags):
        plain_time = max(
            measure_seconds(plain_pattern.search, (word * PATTERN_TEXT_SIZE)[:PATTERN_TEXT_SIZE]),
            1e-5,
        )
        for size in (16, 24, 28, 256, 2048, PATTERN_TEXT_SIZE):
            text = (word * size)[:size] + "\x00"
            pattern_time = measure_seconds(run_pattern, text)
            if pattern_time > TOO_SLOW * plain_time:
                pattern_time = min(measure_seconds(run_pattern, text), pattern_time)
            worst = max(worst, (pattern_time / plain_time, word))
            if worst[0] > TOO_SLOW:
                return worst
    return worst


TOO_SLOW = 500.0
PATTERNS = sorted(set(find_patterns()))


@pytest.mark.parametrize("row", PATTERNS, ids=[f"{row[0]}-{n}" for n, row in enumerate(PATTERNS)])
def test_a_regular_expression_takes_linear_time(row, record_verdict):
    module, pattern, flags, method = row
    factor, word = find_slowest_word(pattern, flags, method)
    assert factor <= TOO_SLOW, (
        f"{module}: {pattern} takes {factor:.0f} times a plain search of {word!r}"
    )
    record_verdict("in proportion to the text", "the planted ones are found")


SLOW_PATTERNS = [r"\r+\n", r"\bsk-(?=[\w-]*\d)[\w-]{20,}", r"(?:a+)+b", r".*requirements.*\.txt"]


@pytest.mark.first_case
@pytest.mark.parametrize("pattern", SLOW_PATTERNS)
def test_a_planted_slow_pattern_is_found(pattern, record_verdict):
    assert find_slowest_word(pattern, 0, "search")[0] > TOO_SLOW
    record_verdict("found", "it was planted")


def test_all_that_is_left_out_is_there():
    """A module that no longer exists must not stay on the list."""
    assert [
        name
        for name in TRUSTED_TEXT
        if not ((ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file())
    ] == []
