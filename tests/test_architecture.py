"""The rules of the house, read from the code itself."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "osiris"
COMPOSITION = {
    "__main__",
    "cli",
    "bootstrap",
    "runtime",
    "readiness",
    "maintenance",
    "loop_monitor",
}
COMPOSITION |= {"console", "playground", "local"}
DEVHUB = {"osiris.core.errors", "osiris.core.git_environment", "osiris.__version__"}
DEVHUB |= {"osiris.config.atomic_file", "osiris.config.http_server"}
"""All of Osiris that devhub may know: it is GitHub, which knows nothing of Osiris."""
SOURCES = sorted(p for p in ROOT.rglob("*.py") if "sample" not in p.parts)


def imported(source: str) -> set[str]:
    """Every module name a source imports, `from a import b` as a.b; a relative import is an error
    by itself."""
    names = set()
    for node in ast.walk(ast.parse(source)):
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
        ("queue/processor", "from osiris.agents.runner import Runner"),
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
    tree = ast.parse(source)
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


def test_nobody_waits_in_the_way_that_loses_a_cancellation():
    """`asyncio.wait_for` of Python 3.11 swallows a cancellation that comes as the thing happens: a
    stop that hangs."""
    assert [place_of(path) for path in SOURCES if "wait_for(" in path.read_text()] == []


def test_only_the_workers_edge_catches_everything():
    broad = {
        place_of(path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or getattr(node.type, "id", "") == "Exception")
    }
    assert broad <= {"queue/processor", "queue/worker"}


def test_the_commands_load_nothing_heavy():
    """`osiris --help` is quick because it imports little."""
    import subprocess

    heavy = ("githubkit", "fastapi", "sqlalchemy", "alembic", "pydantic", "uvloop", "rich")
    code = f"import sys, osiris.cli; print([m for m in {heavy} if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
