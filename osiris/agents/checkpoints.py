"""A run's files put away now and then, so that another machine can go on with them; and had again
there."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from osiris.agents.loop import INTERRUPTED, TranscriptRecorder
from osiris.core.errors import Refused, Unavailable
from osiris.core.ports.models import Message, Toolbox
from osiris.core.ports.repositories import CheckpointStorage, Repositories
from osiris.core.ports.sandbox import Plan, Sandbox, Session
from osiris.core.ports.storage import Checkpoint, ResumedRun, Transcripts
from osiris.core.sanitize import cut_text

log = logging.getLogger(__name__)

EVERY = 60.0  # seconds between two times that a run's files are put away, at least
# Each time leaves a pack of all that the run has changed, here and on GitHub. None can be removed
# while the run goes on: the next commit stands on the last one, whose objects git needs for the
# push. So the times are spread instead.
_GROWTH = 64 << 10  # bytes a second that they may grow by, so 225 MiB an hour
_SHARE = 20  # a time that took so many seconds is followed by a pause of so many times as many
_LAST = 6.0  # seconds that it may take when the worker is about to end
_MOST_NAMED, _MOST_COMMAND = 10, 200  # commands that ended otherwise; characters of each

MOVED = (
    "This work was moved to another machine. The files of the repository are as they were. Gone are"
    " running processes, what lay outside of the workspace, and what git ignores in it, such as"
    " installed packages."
)
DIFFERED = (
    " Some commands were run again there, and ended otherwise than before, so look before you go"
    " on: "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLocation:
    """Whose files they are: the repository, the run's name in it, and its transcript's name."""

    repo: str
    ref: str
    run: str


class Checkpoints:
    """Where the files of one run are put away, taken the way finished work is taken.

    Without a `vault` nothing is put away: then the database is on the same disk as the files.
    """

    def __init__(
        self,
        location: RunLocation,
        storage: CheckpointStorage | None,
        repositories: Repositories,
        transcripts: Transcripts,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._location = location
        self._storage = storage
        self._repositories = repositories
        self._transcripts = transcripts
        self._clock = clock
        self._due = clock() + EVERY
        self._base = self._before = ""

    async def open_session(
        self, sandbox: Sandbox, resumed_run: ResumedRun, plan: Plan
    ) -> tuple[Session, int | None]:
        """The run's session, and the message from which on its steps must be done again in it
        (None: from none).

        `plan` is for a new one, but for what was put away. Raises Refused or Unavailable.
        """
        self._base = resumed_run.base
        self._before = resumed_run.checkpoint.commit if resumed_run.checkpoint else ""
        if not resumed_run.here:
            # what an earlier visit of this run left here is out of date
            await sandbox.remove(self._location.run)
        files = (
            await self._restore_files(resumed_run.checkpoint)
            if self._location.run not in sandbox.names()
            else ""
        )
        session, is_new = await sandbox.create(
            self._location.run, replace(plan, base=resumed_run.base, files=files)
        )
        if not is_new:
            return session, None
        return session, resumed_run.checkpoint.steps if resumed_run.checkpoint and files else 0

    async def _restore_files(self, checkpoint: Checkpoint | None) -> str:
        if self._storage is None or checkpoint is None:
            return ""
        try:
            await self._storage.restore(self._location.repo, self._location.ref)
        except Refused as refused:
            log.warning(
                "what %s had done is not where it was put away: %s", self._location.run, refused
            )
            return ""
        return checkpoint.commit

    async def save_if_due(self, session: Session, recorder: TranscriptRecorder) -> None:
        """Put the files away after a step, if that was not done for a while: the larger, the
        longer."""
        if self._storage is not None and self._clock() >= self._due:
            await self.save(session, len(recorder.messages))

    async def save(self, session: Session, steps: int) -> None:
        """Put the files away as they are after `steps` messages. What cannot be put away is done
        again instead."""
        began = self._clock()
        size = 0
        try:
            export = await session.export(self._base)
            with export.pack:
                taken = await self._repositories.import_pack(
                    self._location.repo, self._base, export, ()
                )
            size = taken.size
            await self.save_tree(taken.tree, steps)
        except (Refused, Unavailable) as error:
            log.warning("the files of %s could not be put away: %s", self._location.run, error)
        now = self._clock()
        self._due = now + pause_after(size, now - began)

    async def save_tree(self, tree: str, steps: int) -> None:
        """Put a tree away that was taken already. Raises LeaseLost, Refused or Unavailable."""
        if self._storage is not None:
            commit = await self._storage.save(
                self._location.repo, self._location.ref, tree, self._base, self._before
            )
            await self._transcripts.record_checkpoint(
                self._location.run, Checkpoint(commit=commit, steps=steps)
            )
            self._before = commit

    async def save_on_shutdown(self, session: Session, recorder: TranscriptRecorder) -> None:
        """The worker is about to end: put the files away, in a few seconds or not at all."""
        if self._storage is None:
            return
        try:
            async with asyncio.timeout(_LAST):
                await self.save(session, len(recorder.messages))
        except TimeoutError:
            log.warning("there was no time to put the files of %s away", self._location.run)


def pause_after(size: int, seconds: float) -> float:
    """Return how many seconds to wait after a time that added `size` bytes and took
    `parse_time`."""
    return max(EVERY + size / _GROWTH, _SHARE * seconds)


async def replay_calls(toolbox: Toolbox, messages: Sequence[Message], since: int) -> list[str]:
    """Do again, in a new workspace, the answered tool calls whose answers come from message `since`
    on.

    No model is asked. Returns the commands that ended otherwise than they did.
    """
    calls = {call.id: call for message in messages for call in message.calls}
    answers = [
        message
        for message in messages[since:]
        if message.role == "tool" and message.text != INTERRUPTED
    ]
    log.info("doing %d tool calls again in a new workspace", len(answers))
    differed = []
    for answer in answers:
        if (call := calls[answer.call]).broken:
            continue
        ran = (await toolbox.call_tool(call.name, call.args)).ran
        if answer.ran and ran and answer.ran.exit_code != ran.exit_code:
            command = cut_text(ran.command, _MOST_COMMAND)
            before = answer.ran.exit_code
            differed.append(f"`{command}` ended with {ran.exit_code}, before with {before}")
    return differed


def relocation_notice(differed: Sequence[str], *, restored: bool) -> Message | None:
    """What the agent is told of it; nothing when all that it had done was done again, with the same
    ends."""
    if not restored and not differed:
        return None
    if not differed:
        return Message(role="user", text=MOVED)
    left = len(differed) - _MOST_NAMED
    more = f"; and {left} more" if left > 0 else ""
    return Message(role="user", text=MOVED + DIFFERED + "; ".join(differed[:_MOST_NAMED]) + more)


def is_difference_notice(message: Message) -> bool:
    return message.role == "user" and message.text.startswith(MOVED + DIFFERED)
