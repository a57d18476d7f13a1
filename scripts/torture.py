"""Write the counts of a complete `make torture` (build/torture.json) into docs/testing.md, between
its two markers."""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "build/torture.json"
PAGE = ROOT / "docs/testing.md"
BEGIN, END = "<!-- torture: begin -->", "<!-- torture: end -->"
PART_NAMES = {
    "machines": "two workers and a web process on PostgreSQL and Redis, killed at random moments",
    "frozen": "two workers, each frozen until the other has taken over its work",
    "crash": "one process on SQLite, killed in each task at a different external call",
    "enemy": "a GitHub with random faults in answers and webhook deliveries",
}
COLUMNS = {
    "tasks": "tasks",
    "kills": "kills or faults",
    "freezes": "freezes",
    "takeovers": "runs taken over",
    "pulls": "pull requests",
    "comments": "comments",
    "commits": "commits",
    "requests": "model requests",
    "cut_off": "requests lost with their process",
    "repeated": "requests repeated after an answer",
    "doubles": "doubles",
    "losses": "losses",
}


def table(report: dict[str, Any]) -> str:
    machine = report["machine"]
    lines = [
        f"The run of {report['at'][:10]}, seed {report['seed']}, {machine['cores']} cores, "
        f"CPython {machine['python']}:",
        "",
        f"| what | {' | '.join(COLUMNS.values())} |",
        "|" + "---|" * (len(COLUMNS) + 1),
    ]
    for name, figures in report["parts"].items():
        lines.append(
            f"| {PART_NAMES[name]} | {' | '.join(f'{figures[column]:,}' for column in COLUMNS)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Return 1 when there are no counts, or docs/testing.md has no markers for them."""
    page = PAGE.read_text()
    if not REPORT.exists() or BEGIN not in page or END not in page:
        print(
            f"nothing was written: {REPORT} is missing, or {PAGE} has no markers", file=sys.stderr
        )
        return 1
    report = json.loads(REPORT.read_text())
    if not report["whole"]:
        print(f"{PAGE} keeps its figures: this run was not complete", file=sys.stderr)
        return 0
    before, rest = page.split(BEGIN, 1)
    PAGE.write_text(f"{before}{BEGIN}\n{table(report)}\n{END}{rest.split(END, 1)[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
