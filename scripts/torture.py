"""Write what a whole `make torture` counted (build/torture.json) into docs/testing.md, between its
two markers."""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COUNTED = ROOT / "build/torture.json"
PAGE = ROOT / "docs/testing.md"
BEGIN, END = "<!-- torture: begin -->", "<!-- torture: end -->"
WHAT = {
    "machines": "two workers and a web process on PostgreSQL and Redis, killed at random moments",
    "frozen": "two workers, frozen in turn until the other has gone on",
    "crash": "one process on SQLite, killed in each life at another place that touches the outside",
    "enemy": "GitHub that answers and delivers wrong, as drawn",
}
COLUMNS = {
    "tasks": "tasks",
    "kills": "kills or troubles",
    "freezes": "freezes",
    "takeovers": "runs taken over",
    "pulls": "pull requests",
    "comments": "comments",
    "commits": "commits",
    "requests": "model requests",
    "cut_off": "cut off while thinking",
    "repeated": "answered, and asked again",
    "doubles": "doubles",
    "losses": "losses",
}


def table(counted: dict[str, Any]) -> str:
    machine = counted["machine"]
    lines = [
        f"The run of {counted['at'][:10]}, seed {counted['seed']}, {machine['cores']} cores, "
        f"CPython {machine['python']}:",
        "",
        f"| what | {' | '.join(COLUMNS.values())} |",
        "|" + "---|" * (len(COLUMNS) + 1),
    ]
    for name, figures in counted["parts"].items():
        lines.append(
            f"| {WHAT[name]} | {' | '.join(f'{figures[column]:,}' for column in COLUMNS)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Exit code 1 when there are no counts, or no place for them."""
    page = PAGE.read_text()
    if not COUNTED.exists() or BEGIN not in page or END not in page:
        print(
            f"nothing was written: {COUNTED} is missing, or {PAGE} has no markers", file=sys.stderr
        )
        return 1
    counted = json.loads(COUNTED.read_text())
    if not counted["whole"]:
        print(f"{PAGE} keeps its figures: this run was not a whole one", file=sys.stderr)
        return 0
    before, rest = page.split(BEGIN, 1)
    PAGE.write_text(f"{before}{BEGIN}\n{table(counted)}\n{END}{rest.split(END, 1)[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
