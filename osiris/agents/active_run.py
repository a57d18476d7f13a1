"""The objects of one run while it is active."""

from dataclasses import dataclass

from osiris.agents.budget import Budget
from osiris.agents.checkpoints import Checkpoints
from osiris.agents.loop import TranscriptRecorder
from osiris.agents.roles import AgentRole
from osiris.core.effects import StartRun
from osiris.core.ports.models import Message, Toolbox
from osiris.core.ports.repositories import Instructions
from osiris.core.ports.sandbox import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class ActiveRun:
    """A run: `name` is that of its transcript and its session, `base` the commit that its work
    began on, `instructions` the files that its agent was given, `notice` what the agent is told
    when it goes on."""

    name: str
    order: StartRun
    role: AgentRole
    base: str
    instructions: Instructions
    session: Session
    toolbox: Toolbox
    recorder: TranscriptRecorder
    budget: Budget
    checkpoints: Checkpoints
    notice: Message | None

    async def save_checkpoint(self) -> None:
        await self.checkpoints.save_if_due(self.session, self.recorder)
