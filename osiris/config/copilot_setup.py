"""Setup steps that a repository already has for GitHub's own agent: `copilot-setup-steps.yml`.

https://docs.github.com/en/copilot/how-tos/use-copilot-agents/coding-agent/customize-the-agent-environment
"""

from collections.abc import Iterator
from typing import Any, Final

from osiris.config.repository_file import MOST_COMMAND, MOST_COMMANDS
from osiris.config.yaml_text import UnreadableYaml, load_yaml
from osiris.core.errors import NeedsOperator

PATH: Final = ".github/workflows/copilot-setup-steps.yml"
JOB: Final = "copilot-setup-steps"
_INSTEAD: Final = "fix it, or list the setup commands in `.github/osiris.yml` (`commands.setup`)"


def parse_steps(text: str) -> tuple[str, ...]:
    """Return the commands of its `run:` steps, in order; none for a file without that job.

    A step that uses an action, or contains a GitHub expression (`${{ … }}`), needs GitHub's
    machines and is left out. Raises NeedsOperator for a file that cannot be read, or that has more
    commands than `commands.setup` may have.
    """
    try:
        data = load_yaml(text)
    except UnreadableYaml as error:
        where = f" in line {error.line}" if error.line else ""
        raise NeedsOperator(f"`{PATH}` {error}{where}; {_INSTEAD}") from None
    commands = tuple(_list_commands(data))
    if len(commands) > MOST_COMMANDS:
        raise NeedsOperator(
            f"`{PATH}` has {len(commands)} commands, more than {MOST_COMMANDS}; {_INSTEAD}"
        )
    if any(len(command) > MOST_COMMAND for command in commands):
        raise NeedsOperator(
            f"`{PATH}` has a command of more than {MOST_COMMAND:,} characters; {_INSTEAD}"
        )
    return commands


def _list_commands(data: Any) -> Iterator[str]:
    try:
        steps = data["jobs"][JOB]["steps"]
        commands = [
            step["run"]
            for step in steps
            if isinstance(step, dict) and "run" in step and "if" not in step
        ]
    except (KeyError, TypeError):
        return
    yield from (
        command for command in commands if isinstance(command, str) and _is_runnable(command)
    )


def _is_runnable(command: str) -> bool:
    return "${{" not in command and command.encode(errors="ignore").decode() == command
