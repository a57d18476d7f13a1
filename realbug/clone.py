"""A plain clone of the repository, outside every sandbox, and what its tests say there."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from osiris.core.errors import Refused


def insist(holds: bool, otherwise: str) -> None:
    """Raise Refused unless it holds."""
    if not holds:
        raise Refused(otherwise)


@dataclass(frozen=True)
class Clone:
    """`place` holds the work tree, `tools` the virtual environment that its tests run in."""

    place: Path
    tools: Path

    @classmethod
    def of(cls, url: str, place: Path, tools: Path) -> "Clone":
        _run(["git", "clone", "--quiet", url, str(place)], place.parent)
        return cls(place, tools)

    def ordinal(self, number: int) -> str:
        code = f"from tenacity._utils import to_ordinal; print(to_ordinal({number}))"
        return self._python("-c", code).strip()

    def suite(self, *paths: str) -> str:
        """pytest's last line. Raises Refused unless everything passed."""
        return (
            self._python("-m", "pytest", "-q", "-p", "no:cacheprovider", *paths)
            .strip()
            .splitlines()[-1]
        )

    def check(self, test: str) -> str:
        """Insist on the mended code, the new test and the whole suite; gives the suite's last
        line."""
        for number, wanted in {
            1: "1st",
            11: "11th",
            101: "101st",
            111: "111th",
            112: "112th",
            113: "113th",
        }.items():
            found = self.ordinal(number)
            insist(found == wanted, f"in the clone to_ordinal({number}) is {found}")
        insist(
            "113th" in (self.place / test).read_text(),
            f"the new cases are not in the clone's {test}",
        )
        new = self.suite(f"{test}::test_ordinals")
        insist(new.startswith("1 passed"), f"the new test says in the clone: {new}")
        return self.suite()

    def _python(self, *args: str) -> str:
        return _run([str(self.tools / "bin/python"), "-B", *args], self.place)


def _run(argv: Sequence[str], cwd: Path) -> str:
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    env = {**keep, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8"}
    result = subprocess.run(
        argv, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    if result.returncode:
        words = " ".join((result.stderr.strip() or result.stdout.strip()).split())
        raise Refused(f"{' '.join(argv[:4])} ended with {result.returncode}: {words[-400:]}")
    return result.stdout
