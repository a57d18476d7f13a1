"""A plain clone of the repository outside of every sandbox, and the results of its tests."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from osiris.core.errors import Refused


def require(condition: bool, message: str) -> None:
    """Raise Refused unless the condition is true."""
    if not condition:
        raise Refused(message)


@dataclass(frozen=True)
class Clone:
    """A clone. `folder` contains the work tree, `tools` the virtual environment in which its tests
    run."""

    folder: Path
    tools: Path

    @classmethod
    def create(cls, url: str, folder: Path, tools: Path) -> "Clone":
        _run(["git", "clone", "--quiet", url, str(folder)], folder.parent)
        return cls(folder, tools)

    def call_to_ordinal(self, number: int) -> str:
        code = f"from tenacity._utils import to_ordinal; print(to_ordinal({number}))"
        return self._run_python("-c", code).strip()

    def run_suite(self, *paths: str) -> str:
        """Return the last line of pytest. Raise Refused unless all tests passed."""
        return (
            self._run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", *paths)
            .strip()
            .splitlines()[-1]
        )

    def check_fix(self, test: str) -> str:
        """Raise Refused unless the code is fixed, and the new test and the whole suite pass. Return
        the last line of the suite."""
        for number, expected in {
            1: "1st",
            11: "11th",
            101: "101st",
            111: "111th",
            112: "112th",
            113: "113th",
        }.items():
            actual = self.call_to_ordinal(number)
            require(actual == expected, f"in the clone to_ordinal({number}) is {actual}")
        require(
            "113th" in (self.folder / test).read_text(),
            f"the new cases are not in the clone's {test}",
        )
        test_result = self.run_suite(f"{test}::test_ordinals")
        require(
            test_result.startswith("1 passed"), f"the new test says in the clone: {test_result}"
        )
        return self.run_suite()

    def _run_python(self, *args: str) -> str:
        return _run([str(self.tools / "bin/python"), "-B", *args], self.folder)


def _run(argv: Sequence[str], cwd: Path) -> str:
    environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    env = {**environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C.UTF-8"}
    result = subprocess.run(
        argv, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300
    )
    if result.returncode:
        output = " ".join((result.stderr.strip() or result.stdout.strip()).split())
        raise Refused(f"{' '.join(argv[:4])} ended with {result.returncode}: {output[-400:]}")
    return result.stdout
