"""The rules of the house, read from the code itself."""

import ast
import functools
import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "osiris"
COMPOSITION = {"__main__", "bootstrap", "cli", "console", "data_folder", "factories", "local"}
COMPOSITION |= {"loop_monitor", "maintenance", "playground", "readiness", "runtime"}
DEVHUB = {"osiris.core.errors", "osiris.core.git_environment", "osiris.__version__"}
DEVHUB |= {"osiris.config.atomic_file", "osiris.config.http_server"}
"""All of Osiris that devhub may know: it is GitHub, which knows nothing of Osiris."""
SOURCES = sorted(p for p in ROOT.rglob("*.py") if "sample" not in p.parts)

parse = functools.cache(ast.parse)  # each rule reads all of the code


def imported(source: str) -> set[str]:
    """Every module name a source imports, `from a import b` as a.b; a relative import is an error
    by itself."""
    names = set()
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names.add("relative")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def trespasses(place: str, source: str) -> list[str]:
    """What `source` may not import where it stands; `place` is its path below osiris/ without the
    ending."""
    room = place.partition("/")[0]
    found = []
    for name in imported(source):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if name == "relative":
            found.append("a relative import")
        elif room in COMPOSITION or place == "__init__":
            continue
        elif room == "core":
            if top not in sys.stdlib_module_names and not (top == "osiris" and target == "core"):
                found.append(name)
        elif room == "devhub" and top == "osiris" and target != room:
            if name not in DEVHUB and name.rpartition(".")[0] not in DEVHUB:
                found.append(name)
        elif top == "osiris" and target not in {room, "core", "config", "__version__"}:
            found.append(name)
    return found


def place_of(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(""))


def test_a_module_imports_only_what_its_place_allows():
    found = {
        place: trespasses(place, path.read_text()) for path in SOURCES if (place := place_of(path))
    }
    assert {place: names for place, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("place", "planted"),
    [
        ("core/decide", "import httpx"),
        ("core/decide", "import osiris.queue.task_store"),
        ("core/events", "from osiris.bot.github import comments"),
        ("agents/loop", "from osiris.bot.github.app_auth import Tokens"),
        ("tools/shell", "from osiris.queue import task_store"),
        ("queue/event_processor", "from osiris.agents.runner import Runner"),
        ("devhub/world", "from osiris.bot.github.client import GitHub"),
        ("devhub/world", "from osiris.core.events import IssueRef"),
        ("config/settings", "from osiris.queue.task_store import Store"),
        ("bot/web/app", "from osiris import bootstrap"),
        ("bot/web/app", "from . import metrics"),
    ],
)
def test_a_planted_import_is_found(place: str, planted: str):
    assert trespasses(place, planted) != []


ONE_KNOWER = {
    "githubkit": {"bot/github/app_auth", "bot/github/client", "bot/github/transport"},
    "typer": {"cli"},
    "os.environ": {"config/settings", "devhub/git_repository"},  # devhub hands git its PATH
    "dotenv": {"config/settings"},
    "arq": {"queue/redis_wake"},
}


@pytest.mark.parametrize("thing", ONE_KNOWER)
def test_some_things_have_one_knower(thing: str):
    knowers = {
        place_of(path)
        for path in SOURCES
        if thing in {name.partition(".")[0] for name in imported(path.read_text())}
        or f"{thing}." in path.read_text()
    }
    assert knowers == ONE_KNOWER[thing]


def unreadable(place: str, source: str) -> list[str]:
    """What keeps a reader from seeing what a module is for, and how."""
    tree = parse(source)
    found = [] if ast.get_docstring(tree) else [f"{place} has no docstring"]
    if len(source.splitlines()) > 400:
        found.append(f"{place} is too long")
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60]
    return [*found, *(f"{place}: {name} is too long" for name in long)]


def test_a_module_says_what_it_is_for_and_stays_readable():
    ours = [path for path in SOURCES if "migrations" not in path.parts]
    assert [line for path in ours for line in unreadable(place_of(path), path.read_text())] == []


@pytest.mark.parametrize(
    "planted",
    ["x = 1", '"""A."""\n' + "x = 1\n" * 400, '"""A."""\ndef long():\n' + "    x = 1\n" * 61],
)
def test_a_planted_module_that_nobody_can_read_is_found(planted: str):
    assert len(unreadable("bot/web/app", planted)) == 1


PARTICIPLES = re.compile(
    r"[a-z]+ed|begun|built|done|found|given|gone|heard|held|kept|laid|left|made|read_out|said|seen"
    r"|sent|shown|taken|told|written"
)
HEADLESS = {"What", "Who", "Where", "Whether", "How", "Which", "When", "Whose", "Why"}
FOREIGN = {"cli", "config/logging", "devhub/graphql", "agents/models/registry", "bot/web/app"}
FOREIGN |= {"queue/sqlite_connection"}
"""Modules whose functions have names that others gave them: commands, an API, a library's faces."""


def one_word_names() -> set[str]:
    """Return the words that may name a public function alone; they stand in the glossary."""
    page = (ROOT.parent / "docs/glossary.md").read_text()
    listed = page[page.index("These words alone") :]
    return set(re.search(r"`([a-z\s]+)`", listed)[1].split())


def own_functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return all functions of a module but properties and those that Python itself calls."""
    functions = (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return [
        node
        for node in functions
        if not node.name.startswith("__")
        and not any(ast.unparse(one).endswith("property") for one in node.decorator_list)
    ]


def badly_named(place: str, source: str) -> list[str]:
    """Return the functions of a module whose names say neither what they do nor what they give."""
    if place in FOREIGN:
        return []
    allowed = one_word_names()
    found = []
    for node in own_functions(parse(source)):
        is_overriding = any(ast.unparse(one).endswith("override") for one in node.decorator_list)
        name = node.name.strip("_")
        if "_" in name or is_overriding:
            continue
        is_public = not node.name.startswith("_")
        if PARTICIPLES.fullmatch(name) or (is_public and name not in allowed):
            found.append(f"{place}: {node.name}")
    return found


def headless(place: str, source: str) -> list[str]:
    """Return the docstrings of a module that begin with no verb and no noun."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(parse(source)) if isinstance(node, documented))
    texts = (ast.get_docstring(node) or "" for node in nodes)
    return [f"{place}: {text[:60]}" for text in texts if text.partition(" ")[0] in HEADLESS]


def packed(place: str, source: str) -> list[str]:
    """Return the assignments that do several things at once: a pair of plain values is one."""
    found = []
    for node in ast.walk(parse(source)):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
            continue
        values = node.value.elts
        if isinstance(node.targets[0], ast.Tuple) and (len(values) > 2 or is_long(node)):
            found.append(f"{place}:{node.lineno}")
    return found


def is_long(node: ast.Assign) -> bool:
    return node.lineno != node.end_lineno


RULES = {"names": badly_named, "docstrings": headless, "assignments": packed}


@pytest.mark.parametrize("rule", RULES)
def test_the_language_of_the_code_is_that_of_the_glossary(rule: str):
    ours = [path for path in SOURCES if "migrations" not in path.parts]
    found = [line for path in ours for line in RULES[rule](place_of(path), path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("rule", "planted"),
    [
        ("names", "def told(): ..."),
        ("names", "class A:\n    async def _shown(self): ..."),
        ("names", "def harmless(text): ..."),
        ("docstrings", '"""What becomes of it."""'),
        ("docstrings", 'class A:\n    def f(self):\n        """Whether it is."""'),
        ("assignments", "a, b, c = 1, 2, 3"),
        ("assignments", "a, b = (\n    f(),\n    g(),\n)"),
    ],
)
def test_planted_private_language_is_found(rule: str, planted: str):
    assert len(RULES[rule]("bot/git/runner", planted)) == 1


def test_most_names_of_functions_have_more_than_one_word():
    names = [
        node.name.strip("_")
        for path in SOURCES
        for node in own_functions(parse(path.read_text()))
    ]
    assert sum("_" not in name for name in names) <= 0.35 * len(names)


def thawed(source: str) -> list[str]:
    """Return the dataclasses of a module that are not frozen."""
    classes = (node for node in ast.walk(parse(source)) if isinstance(node, ast.ClassDef))
    return [
        node.name
        for node in classes
        for decorator in map(ast.unparse, node.decorator_list)
        if decorator.startswith("dataclass") and "frozen=True" not in decorator
    ]


def test_the_dataclasses_of_the_core_are_frozen():
    core = [path for path in SOURCES if place_of(path).startswith("core/")]
    assert [name for path in core for name in thawed(path.read_text())] == []
    assert thawed("@dataclass(slots=True)\nclass A: ...") == ["A"]


def repeated_classes(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names that several classes have, with the modules they stand in."""
    places = defaultdict(list)
    for place, source in sources.items():
        for node in ast.walk(parse(source)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(place)
    return {name: found for name, found in places.items() if len(found) > 1}


def test_a_class_name_is_unique():
    assert repeated_classes({place_of(path): path.read_text() for path in SOURCES}) == {}
    assert repeated_classes({"a": "class A: ...", "b": "class A: ..."}) == {"A": ["a", "b"]}


def test_nobody_waits_in_the_way_that_loses_a_cancellation():
    """`asyncio.wait_for` of Python 3.11 swallows a cancellation that comes as the thing happens: a
    stop that hangs."""
    assert [place_of(path) for path in SOURCES if "wait_for(" in path.read_text()] == []


def test_only_the_workers_edge_catches_everything():
    broad = {
        place_of(path)
        for path in SOURCES
        for node in ast.walk(parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or getattr(node.type, "id", "") == "Exception")
    }
    assert broad <= {"queue/event_processor", "queue/order_processor", "queue/worker"}


def test_the_commands_load_nothing_heavy():
    """`osiris --help` is quick because it imports little."""
    import subprocess

    heavy = ("githubkit", "fastapi", "sqlalchemy", "alembic", "pydantic", "uvloop", "rich")
    code = f"import sys, osiris.cli; print([m for m in {heavy} if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
