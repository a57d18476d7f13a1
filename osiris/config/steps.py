"""The steps by which a repository gets GitHub's own agent ready, for those that have them: `copilot-setup-steps.yml`.

https://docs.github.com/en/copilot/how-tos/use-copilot-agents/coding-agent/customize-the-agent-environment
"""

from collections.abc import Iterator
from typing import Any

import yaml

from osiris.config.repo import MOST

PATH = ".github/workflows/copilot-setup-steps.yml"
JOB = "copilot-setup-steps"


def parse(text: str) -> tuple[str, ...]:
    """The commands of its `run:` steps, in order; none for a file that is not understood.

    A step that wants an action, or has an expression of GitHub's (`${{ … }}`) in it, needs GitHub's machines and is
    left out.
    """
    if len(text) > MOST:
        return ()
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError):
        return ()
    return tuple(_commands(data))


def _commands(data: Any) -> Iterator[str]:
    try:
        steps = data["jobs"][JOB]["steps"]
        commands = [step["run"] for step in steps if isinstance(step, dict) and "run" in step and "if" not in step]
    except (KeyError, TypeError):
        return
    yield from (command for command in commands if isinstance(command, str) and _can_be_run(command))


def _can_be_run(command: str) -> bool:
    return "${{" not in command and command.encode(errors="ignore").decode() == command
