"""The rules for the code, checked by reading its source."""

import ast
import functools
import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "osiris"
COMPOSITION_PACKAGES = {
    "__main__",
    "bootstrap",
    "cli",
    "console",
    "data_folder",
    "factories",
    "local",
}
COMPOSITION_PACKAGES |= {"loop_monitor", "maintenance", "playground", "readiness", "runtime"}
DEVHUB_IMPORTS = {"osiris.core.errors", "osiris.core.git_environment", "osiris.__version__"}
DEVHUB_IMPORTS |= {"osiris.config.atomic_file", "osiris.config.http_server"}
"""The modules of Osiris that devhub may import: it imitates GitHub, which knows nothing of
Osiris."""
SOURCES = sorted(p for p in ROOT.rglob("*.py") if "sample" not in p.parts)

parse = functools.cache(ast.parse)  # each rule reads all of the code


def list_imports(source: str) -> set[str]:
    """Return every module name that a source imports, `from a import b` as a.b. A relative import
    is returned as `relative`."""
    names = set()
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                names.add("relative")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def find_forbidden_imports(module: str, source: str) -> list[str]:
    """Return what `source` imports and must not; `module` is its path below osiris/ without the
    ending."""
    package = module.partition("/")[0]
    forbidden = []
    for name in list_imports(source):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if name == "relative":
            forbidden.append("a relative import")
        elif package in COMPOSITION_PACKAGES or module == "__init__":
            continue
        elif package == "core":
            if top not in sys.stdlib_module_names and not (top == "osiris" and target == "core"):
                forbidden.append(name)
        elif package == "devhub" and top == "osiris" and target != package:
            if name not in DEVHUB_IMPORTS and name.rpartition(".")[0] not in DEVHUB_IMPORTS:
                forbidden.append(name)
        elif top == "osiris" and target not in {package, "core", "config", "__version__"}:
            forbidden.append(name)
    return forbidden


def get_module(path: Path) -> str:
    return str(path.relative_to(ROOT).with_suffix(""))


def test_a_module_imports_only_what_its_place_allows():
    forbidden = {
        module: find_forbidden_imports(module, path.read_text())
        for path in SOURCES
        if (module := get_module(path))
    }
    assert {module: names for module, names in forbidden.items() if names} == {}


@pytest.mark.parametrize(
    ("module", "planted"),
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
def test_a_planted_import_is_found(module: str, planted: str):
    assert find_forbidden_imports(module, planted) != []


SOLE_USERS = {
    "githubkit": {"bot/github/app_auth", "bot/github/client", "bot/github/transport"},
    "typer": {"cli"},
    "os.environ": {"config/settings", "devhub/git_repository"},  # devhub hands git its PATH
    "dotenv": {"config/settings"},
    "arq": {"queue/redis_wake"},
}


@pytest.mark.parametrize("library", SOLE_USERS)
def test_some_things_have_one_knower(library: str):
    users = {
        get_module(path)
        for path in SOURCES
        if library in {name.partition(".")[0] for name in list_imports(path.read_text())}
        or f"{library}." in path.read_text()
    }
    assert users == SOLE_USERS[library]


def find_readability_problems(module: str, source: str) -> list[str]:
    """Return why a module is hard to read: no docstring, or a length over the limits."""
    tree = parse(source)
    problems = [] if ast.get_docstring(tree) else [f"{module} has no docstring"]
    if len(source.splitlines()) > 400:
        problems.append(f"{module} is too long")
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long_functions = [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60]
    return [*problems, *(f"{module}: {name} is too long" for name in long_functions)]


def test_a_module_says_what_it_is_for_and_stays_readable():
    sources = [path for path in SOURCES if "migrations" not in path.parts]
    assert [
        line
        for path in sources
        for line in find_readability_problems(get_module(path), path.read_text())
    ] == []


@pytest.mark.parametrize(
    "planted",
    ["x = 1", '"""A."""\n' + "x = 1\n" * 400, '"""A."""\ndef long():\n' + "    x = 1\n" * 61],
)
def test_a_planted_module_that_nobody_can_read_is_found(planted: str):
    assert len(find_readability_problems("bot/web/app", planted)) == 1


PARTICIPLES = re.compile(
    r"[a-z]+ed|begun|built|done|found|given|gone|heard|held|kept|laid|left|made|read_out|said|seen"
    r"|sent|shown|taken|told|written"
)
HEADLESS_WORDS = {"What", "Who", "Where", "Whether", "How", "Which", "When", "Whose", "Why"}
EXTERNAL_NAMES = {
    "cli",
    "config/logging",
    "devhub/graphql",
    "agents/models/registry",
    "bot/web/app",
}
EXTERNAL_NAMES |= {"queue/sqlite_connection"}
"""Modules whose functions have names from outside: commands, an API, the interface of a library."""


def read_one_word_names() -> set[str]:
    """Return the words that may stand alone as the name of a public function, from the glossary."""
    page = (ROOT.parent / "docs/glossary.md").read_text()
    section = page[page.index("These words alone") :]
    return set(re.search(r"`([a-z\s]+)`", section)[1].split())


def list_functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return all functions of a module, except properties and functions that Python itself
    calls."""
    functions = (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    return [
        node
        for node in functions
        if not node.name.startswith("__")
        and not any(
            ast.unparse(decorator).endswith("property") for decorator in node.decorator_list
        )
    ]


def find_bad_names(module: str, source: str) -> list[str]:
    """Return the functions of a module whose names state neither what they do nor what they
    return."""
    if module in EXTERNAL_NAMES:
        return []
    allowed = read_one_word_names()
    names = []
    for node in list_functions(parse(source)):
        is_overriding = any(
            ast.unparse(decorator).endswith("override") for decorator in node.decorator_list
        )
        name = node.name.strip("_")
        if "_" in name or is_overriding:
            continue
        is_public = not node.name.startswith("_")
        if PARTICIPLES.fullmatch(name) or (is_public and name not in allowed):
            names.append(f"{module}: {node.name}")
    return names


def find_headless_docstrings(module: str, source: str) -> list[str]:
    """Return the docstrings of a module that begin with neither a verb nor a noun."""
    node_types = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(parse(source)) if isinstance(node, node_types))
    texts = (ast.get_docstring(node) or "" for node in nodes)
    return [f"{module}: {text[:60]}" for text in texts if text.partition(" ")[0] in HEADLESS_WORDS]


def find_packed_assignments(module: str, source: str) -> list[str]:
    """Return the assignments that set several names at once. A pair of plain values on one line is
    allowed."""
    lines = []
    for node in ast.walk(parse(source)):
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
            continue
        values = node.value.elts
        if isinstance(node.targets[0], ast.Tuple) and (
            len(values) > 2 or spans_several_lines(node)
        ):
            lines.append(f"{module}:{node.lineno}")
    return lines


def spans_several_lines(node: ast.Assign) -> bool:
    return node.lineno != node.end_lineno


RULES = {
    "names": find_bad_names,
    "docstrings": find_headless_docstrings,
    "assignments": find_packed_assignments,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_language_of_the_code_is_that_of_the_glossary(rule: str):
    sources = [path for path in SOURCES if "migrations" not in path.parts]
    violations = [
        line for path in sources for line in RULES[rule](get_module(path), path.read_text())
    ]
    assert violations == []


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
        node.name.strip("_") for path in SOURCES for node in list_functions(parse(path.read_text()))
    ]
    assert sum("_" not in name for name in names) <= 0.35 * len(names)


def find_unfrozen_dataclasses(source: str) -> list[str]:
    """Return the dataclasses of a module that are not frozen."""
    classes = (node for node in ast.walk(parse(source)) if isinstance(node, ast.ClassDef))
    return [
        node.name
        for node in classes
        for decorator in map(ast.unparse, node.decorator_list)
        if decorator.startswith("dataclass") and "frozen=True" not in decorator
    ]


def test_the_dataclasses_of_the_core_are_frozen():
    core = [path for path in SOURCES if get_module(path).startswith("core/")]
    assert [name for path in core for name in find_unfrozen_dataclasses(path.read_text())] == []
    assert find_unfrozen_dataclasses("@dataclass(slots=True)\nclass A: ...") == ["A"]


def find_repeated_classes(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names that several classes have, with their modules."""
    modules = defaultdict(list)
    for module, source in sources.items():
        for node in ast.walk(parse(source)):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules[node.name].append(module)
    return {name: with_name for name, with_name in modules.items() if len(with_name) > 1}


def test_a_class_name_is_unique():
    assert find_repeated_classes({get_module(path): path.read_text() for path in SOURCES}) == {}
    assert find_repeated_classes({"a": "class A: ...", "b": "class A: ..."}) == {"A": ["a", "b"]}


def test_nobody_waits_in_the_way_that_loses_a_cancellation():
    """`asyncio.wait_for` of Python 3.11 swallows a cancellation that arrives at the moment the
    awaited task ends. The stop then hangs."""
    assert [get_module(path) for path in SOURCES if "wait_for(" in path.read_text()] == []


def test_only_the_workers_edge_catches_everything():
    modules = {
        get_module(path)
        for path in SOURCES
        for node in ast.walk(parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or getattr(node.type, "id", "") == "Exception")
    }
    assert modules <= {"queue/event_processor", "queue/order_processor", "queue/worker"}


def test_the_commands_load_nothing_heavy():
    """`osiris --help` is quick because it imports little."""
    import subprocess

    heavy = ("githubkit", "fastapi", "sqlalchemy", "alembic", "pydantic", "uvloop", "rich")
    code = f"import sys, osiris.cli; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
