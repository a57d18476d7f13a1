"""Unified diffs: the numbers of their lines, the hunk of a line comment, and the new number of a
line."""

import re
from dataclasses import dataclass
from typing import Literal

HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)$")
Side = Literal["LEFT", "RIGHT"]


@dataclass(frozen=True, slots=True)
class PatchLine:
    """One line of a patch; `position` counts as GitHub does, from 1 below the first hunk header."""

    kind: Literal["hunk", "context", "added", "removed"]
    old: int | None
    new: int | None
    text: str
    position: int

    def get_line_number(self, side: str) -> int | None:
        """Return the line number for comments on this row, on one side."""
        return self.old if side == "LEFT" else self.new


def parse_patch(patch: str) -> list[PatchLine]:
    found: list[PatchLine] = []
    old = new = 0
    for position, line in enumerate(patch.split("\n")):
        if match := HUNK.match(line):
            old = int(match[1])
            new = int(match[3])
            found.append(PatchLine("hunk", None, None, line, position))
        elif line.startswith("+"):
            found.append(PatchLine("added", None, new, line[1:], position))
            new += 1
        elif line.startswith("-"):
            found.append(PatchLine("removed", old, None, line[1:], position))
            old += 1
        elif not line.startswith("\\"):
            found.append(PatchLine("context", old, new, line[1:], position))
            old = old + 1
            new = new + 1
    return found


def find_hunk(patch: str, line: int, side: str) -> tuple[str, int] | None:
    """Return the hunk up to a line, and the line's position; None when the diff does not show
    it."""
    lines = patch.split("\n")
    top = 0
    for row in parse_patch(patch):
        if row.kind == "hunk":
            top = row.position
        elif row.get_line_number(side) == line:
            return "\n".join(lines[top : row.position + 1]), row.position
    return None


def map_line(hunks: str, line: int) -> int | None:
    """Return the number of a line after a diff without context, or None when the line was
    rewritten."""
    shift = 0
    for match in filter(None, map(HUNK.match, hunks.split("\n"))):
        start = int(match[1])
        removed = int(match[2] or 1)
        added = int(match[4] or 1)
        if line < start or (removed == 0 and line == start):
            break
        if start <= line < start + removed:
            return None
        shift += added - removed
    return line + shift
