"""The environment of git: only the settings of the repository itself apply."""

import subprocess

from osiris.core.git_environment import EXPORTS, HARDENED


def test_a_script_has_the_same_environment_as_a_process():
    printed = subprocess.run(
        ["/bin/sh", "-c", f"{EXPORTS}\nenv"], env={}, capture_output=True, text=True, check=True
    )
    names = dict(line.split("=", 1) for line in printed.stdout.splitlines())
    assert HARDENED.items() <= names.items()
