"""Roles of agents: what an agent is told, what it may call and spend, and how its run may end."""

from collections.abc import Mapping
from dataclasses import dataclass

from osiris.core.effects import Purpose
from osiris.core.ports.models import Outcome, Submitted


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRole:
    """A role.

    `prompt` is the name of a file in `prompts/`. `tools` are the names of the tools that its agents
    get, and no others. `budget_share` is the part (0 to 1) of a run's budget that one agent may
    spend. `outcomes` are the ways to end that are a success; any role may fail.
    """

    name: str
    prompt: str
    tools: tuple[str, ...]
    budget_share: float
    outcomes: tuple[type[Outcome], ...]


ENGINEER = AgentRole(
    name="engineer",
    prompt="engineer.md",
    tools=(
        "read_file",
        "write_file",
        "edit_file",
        "list_dir",
        "search",
        "run_command",
        "read_review",
        "submit",
    ),
    budget_share=1.0,
    outcomes=(Submitted,),
)

_ROLES: Mapping[Purpose, AgentRole] = dict.fromkeys(Purpose, ENGINEER)


def select_role(purpose: Purpose) -> AgentRole:
    """Return the role of the agent that works for a purpose."""
    return _ROLES[purpose]
