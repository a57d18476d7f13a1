"""Write `requirements/*.txt` from `pyproject.toml`, or (`--check`) say whether they are stale,
without any network."""

import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLAGS = (
    "--universal",
    "--generate-hashes",
    "--no-emit-index-url",
    "--no-strip-extras",
    "--no-header",
    "--quiet",
)
LOCKS = {
    "build": ["--group", "build"],
    "runtime": ["pyproject.toml"],
    "machines": [
        "pyproject.toml",
        "--extra",
        "machines",
        "--constraints",
        "requirements/runtime.txt",
    ],
    "dev": [
        "pyproject.toml",
        "--extra",
        "machines",
        "--group",
        "dev",
        "--constraints",
        "requirements/machines.txt",
    ],
    "fidelity": ["--group", "fidelity", "--constraints", "requirements/dev.txt"],
}


def wanted() -> str:
    """The fingerprint of everything that decides what is locked."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    package = project["project"]
    names = ("dependencies", "optional-dependencies", "requires-python")
    deciding = [*(package[name] for name in names), project["dependency-groups"]]
    return hashlib.sha256(json.dumps(deciding).encode()).hexdigest()


def head() -> str:
    return f"# Written by `make lock` from pyproject.toml {wanted()}\n"


def check() -> int:
    files = {name: ROOT / f"requirements/{name}.txt" for name in LOCKS}
    stale = [
        name
        for name, path in files.items()
        if not path.exists() or not path.read_text().startswith(head())
    ]
    if stale:
        print(f"stale: requirements/{', '.join(stale)}.txt; run `make lock`", file=sys.stderr)
    return 1 if stale else 0


def write() -> int:
    for name, flags in LOCKS.items():
        path = ROOT / f"requirements/{name}.txt"
        command = ["uv", "pip", "compile", *FLAGS, *flags, "--output-file", str(path)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        path.write_text(
            head() + "".join(line for line in path.open() if not line.startswith("# Written by"))
        )
    return 0


if __name__ == "__main__":
    sys.exit(check() if "--check" in sys.argv else write())
