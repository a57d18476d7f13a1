"""Write how readable the code is, in figures, into docs/architecture.md, between its two markers.

Empty lines are not counted, nor functions that Python itself calls. A test double is a use of a
mocking library.
"""

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/architecture.md"
BEGIN = "<!-- figures: begin -->"
END = "<!-- figures: end -->"
MOCKS = re.compile(r"\b(?:Mock|MagicMock|AsyncMock|create_autospec|mocker|respx)\b|\bmock\.patch")


def read_sources(folder: str) -> Iterator[str]:
    """Return the sources below a folder, without the sample of the demo."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if "sample" not in path.parts and "migrations" not in path.parts:
            yield path.read_text()


def list_functions(trees: list[ast.Module]) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    nodes = (node for tree in trees for node in ast.walk(tree))
    functions = (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return [node for node in functions if not node.name.startswith("__")]


def render_table() -> str:
    """Return the table of figures as Markdown."""
    sources = list(read_sources("osiris"))
    trees = [ast.parse(source) for source in sources]
    functions = list_functions(trees)
    names = [node.name.strip("_") for node in functions]
    short = sum("_" not in name for name in names) / len(names)
    lines = sum(bool(line.strip()) for source in sources for line in source.splitlines())
    nodes = sum(1 for tree in trees for _ in ast.walk(tree))
    lengths = sorted((node.end_lineno or node.lineno) - node.lineno + 1 for node in functions)
    tests = list(read_sources("tests"))
    cases = sum(len(re.findall(r"^(?:async )?def test_", source, re.MULTILINE)) for source in tests)
    doubles = sum(len(MOCKS.findall(source)) for source in tests)
    ninth = lengths[int(0.9 * len(lengths))]
    rows = {
        "functions with a name of one word": f"{short:.0%}",
        "nodes of the syntax tree a line": f"{nodes / lines:.1f}",
        "lines of a function: median / 90th percentile / most": (
            f"{statistics.median(lengths):.0f} / {ninth} / {lengths[-1]}"
        ),
        "test doubles for 100 tests": f"{100 * doubles / cases:.0f}",
    }
    head = ["| figure | value |", "|---|---|"]
    return "\n".join([*head, *(f"| {name} | {value} |" for name, value in rows.items())])


def update_page(page: str) -> str:
    """Return the page with the table of now between its markers."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{render_table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(update_page(PAGE.read_text()))
