"""Checkpoints of a run's files, saved from time to time so that another machine can restore them
and continue."""

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

EVERY = 60.0  # least number of seconds between two checkpoints of a run
# Each checkpoint leaves a pack with everything that the run has changed, here and on GitHub. None
# can be removed while the run continues: each commit has the previous one as its parent, whose
# objects git needs for the push. So large checkpoints are made less often instead.
_GROWTH = 64 << 10  # bytes a second that checkpoints may add, which is 225 MiB an hour
_SHARE = 20  # a checkpoint is followed by a pause of this many times its duration
_LAST = 6.0  # seconds that a checkpoint may take when the worker is about to end
_MOST_NAMED, _MOST_COMMAND = 10, 200  # commands with another exit code; characters of each

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
    """The location of a run's files: the repository, the run's name in it, and the name of its
    transcript."""

    repo: str
    ref: str
    run: str


class Checkpoints:
    """Checkpoints of one run's files, taken the same way as finished work.

    Without a `storage` none is saved: then the database is on the same disk as the files.
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
        """Return the run's session, and the message from which its steps must be replayed in it
        (None: no replay).

        `plan` is that of a new session; its base and files come from the run and its checkpoint.
        Raises Refused or Unavailable.
        """
        self._base = resumed_run.base
        self._before = resumed_run.checkpoint.commit if resumed_run.checkpoint else ""
        if not resumed_run.here:
            # a session that this run left here earlier is out of date
            await sandbox.remove(self._location.run)
        files = (
            await self._restore_files(resumed_run.checkpoint)
            if self._location.run not in sandbox.list_sessions()
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
            log.warning("the checkpoint of %s cannot be restored: %s", self._location.run, refused)
            return ""
        return checkpoint.commit

    async def save_if_due(self, session: Session, recorder: TranscriptRecorder) -> None:
        """Save a checkpoint after a step if the last one is old enough; the larger the last, the
        longer the pause."""
        if self._storage is not None and self._clock() >= self._due:
            await self.save(session, len(recorder.messages))

    async def save(self, session: Session, steps: int) -> None:
        """Save the files as they are after `steps` messages.

        If that fails, the steps are replayed instead when the run moves.
        """
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
            log.warning("the checkpoint of %s could not be saved: %s", self._location.run, error)
        now = self._clock()
        self._due = now + pause_after(size, now - began)

    async def save_tree(self, tree: str, steps: int) -> None:
        """Save a tree that was already imported. Raises LeaseLost, Refused or Unavailable."""
        if self._storage is not None:
            commit = await self._storage.save(
                self._location.repo, self._location.ref, tree, self._base, self._before
            )
            await self._transcripts.record_checkpoint(
                self._location.run, Checkpoint(commit=commit, steps=steps)
            )
            self._before = commit

    async def save_on_shutdown(self, session: Session, recorder: TranscriptRecorder) -> None:
        """Save a checkpoint before the worker ends, within a few seconds or not at all."""
        if self._storage is None:
            return
        try:
            async with asyncio.timeout(_LAST):
                await self.save(session, len(recorder.messages))
        except TimeoutError:
            log.warning("there was no time to save a checkpoint of %s", self._location.run)


def pause_after(size: int, seconds: float) -> float:
    """Return the seconds to wait after a checkpoint that added `size` bytes and took `seconds`."""
    return max(EVERY + size / _GROWTH, _SHARE * seconds)


async def replay_calls(toolbox: Toolbox, messages: Sequence[Message], since: int) -> list[str]:
    """Repeat, in a new session, the tool calls that were answered from message `since` on.

    No model is called. Returns a description of each command whose exit code differs from the first
    time.
    """
    calls = {call.id: call for message in messages for call in message.calls}
    answers = [
        message
        for message in messages[since:]
        if message.role == "tool" and message.text != INTERRUPTED
    ]
    log.info("replaying %d tool calls in a new workspace", len(answers))
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
    """Return the message that reports the move to the agent.

    Returns None when every step was replayed and every command ended with the same exit code.
    """
    if not restored and not differed:
        return None
    if not differed:
        return Message(role="user", text=MOVED)
    left = len(differed) - _MOST_NAMED
    more = f"; and {left} more" if left > 0 else ""
    return Message(role="user", text=MOVED + DIFFERED + "; ".join(differed[:_MOST_NAMED]) + more)


def is_difference_notice(message: Message) -> bool:
    return message.role == "user" and message.text.startswith(MOVED + DIFFERED)
