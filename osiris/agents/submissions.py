"""Submitted work: it is taken out of the sandbox and checked while the session is open, so that an
agent can mend what is refused."""

import logging
import time
from collections.abc import Sequence

from osiris.agents.active_run import ActiveRun
from osiris.agents.checkpoints import is_difference_notice
from osiris.agents.command_totals import MOST_SUMMARY, bound_commands, bound_prepared
from osiris.core import events as e
from osiris.core.effects import Purpose
from osiris.core.errors import NeedsOperator, Refused
from osiris.core.ports.models import Message, ToolSpec
from osiris.core.ports.repositories import ImportedWork, Repositories
from osiris.core.sanitize import cut_text
from osiris.core.work import Work

log = logging.getLogger(__name__)

REFUSED = "the work was not taken: "
_MEND = "; mend it, and submit again"
_NOT_RUN = "not run: the work was handed in before this"
_MOST_REFUSALS = 5  # the same refusal so often in a row ends the run


class Submissions:
    """Imports submitted work into the host repository."""

    def __init__(self, repositories: Repositories) -> None:
        self._repositories = repositories

    async def import_work(
        self, run: ActiveRun, summary: str, deny: Sequence[str]
    ) -> e.RunFact | None:
        """Return the fact of a submission; None when the work was refused and the agent was told
        so.

        Raises Refused when the agent was told the same too often, NeedsOperator or Unavailable.
        """
        issue, number = run.order.issue, run.order.run
        try:
            taken = await self._import_pack(run, deny)
        except NeedsOperator:
            raise
        except Refused as refused:
            await _answer_refusal(run, str(refused))
            return None
        await self._save_checkpoint(run, taken.tree)
        if not taken.files and run.order.purpose is Purpose.REVISE:
            return e.NothingToChange(issue=issue, run=number, summary=summary)
        if not taken.files:
            reason = f"the agent changed no file; it said: {summary}"
            return e.RunFailed(issue=issue, run=number, reason=reason)
        at = int(time.time())
        work = _describe_work(run, taken, summary)
        return e.PatchReady(
            issue=issue, run=number, tree=taken.tree, base=run.base, at=at, work=work
        )

    async def _import_pack(self, run: ActiveRun, deny: Sequence[str]) -> ImportedWork:
        export = await run.session.export(run.base)
        with export.pack:
            return await self._repositories.import_pack(
                run.order.issue.repo, run.base, export, deny
            )

    async def _save_checkpoint(self, run: ActiveRun, tree: str) -> None:
        """Save a checkpoint of the submitted tree: another machine may push it, or this one may be
        gone by then."""
        try:
            await run.checkpoints.save_tree(tree, len(run.recorder.messages))
        except Refused as refused:
            log.warning("the checkpoint of %s could not be saved: %s", run.name, refused)


async def _answer_refusal(run: ActiveRun, reason: str) -> None:
    """Answer the submission with why its work was refused. Raises Refused with the reason when that
    was the answer too often already."""
    answer = f"{REFUSED}{reason}{_MEND}"
    answers = [
        message.text for message in run.recorder.messages if message.text.startswith(REFUSED)
    ]
    if len(answers) >= _MOST_REFUSALS - 1 and set(answers[1 - _MOST_REFUSALS :]) == {answer}:
        raise Refused(reason)
    submit, *others = run.recorder.unanswered_calls()
    await run.recorder.append(Message(role="tool", text=answer, call=submit.id))
    for call in others:
        await run.recorder.append(Message(role="tool", text=_NOT_RUN, call=call.id))


def _describe_work(run: ActiveRun, taken: ImportedWork, summary: str) -> Work:
    messages = run.recorder.messages
    ran = bound_commands([message.ran for message in messages if message.ran])
    left_out = dict.fromkeys(line for message in messages for line in message.left_out)
    return Work(
        summary=cut_text(summary, MOST_SUMMARY),
        files=taken.files,
        commands=ran.commands,
        earlier=ran.earlier,
        blocked=ran.blocked,
        more_blocked=ran.more_blocked,
        edited_last=_edited_last(messages, run.toolbox.list_tools()),
        instructions=tuple(run.instructions.texts),
        model=", ".join(dict.fromkeys(reply.model for reply in run.recorder.replies)),
        steps=len(run.recorder.replies),
        seconds=run.budget.seconds,
        usage=run.recorder.usage,
        prepared=bound_prepared(run.session.prepared),
        left_out=tuple(left_out),
    )


def _edited_last(messages: Sequence[Message], tools: Sequence[ToolSpec]) -> bool:
    """Return whether a file was changed after the last command ran, or a replayed command ended
    with another exit code."""
    editing = {tool.name for tool in tools if tool.edits_files}
    answers = {message.call: message for message in messages if message.role == "tool"}
    for message in reversed(messages):
        if is_difference_notice(message):
            return True
        for call in reversed(message.calls):
            if call.id in answers and answers[call.id].ran:
                return False
            if call.id in answers and call.name in editing:
                return True
    return False
