"""The agent loop: ask the brain, use the tools, until a tool ends the run or the budget does.

The transcript is the only state, and every message is stored before the next thing happens: a
killed run resumes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from osiris.agents.budget import Budget, sum_usage
from osiris.core.errors import Refused, RunEnded, Unavailable
from osiris.core.events import Usage
from osiris.core.ports.live import LiveEvents, ReplyDelta
from osiris.core.ports.models import (
    DeltaKind,
    GaveUp,
    Halted,
    LanguageModel,
    Message,
    Outcome,
    SelectModel,
    ToolAnswer,
    Toolbox,
    ToolCall,
)
from osiris.core.ports.storage import Transcripts

_REPEATABLE = frozenset({"read_file", "list_dir", "search", "write_file", "submit"})
"""Tools that may be used again after a crash without doing anything twice."""

INTERRUPTED = (
    "interrupted: the worker stopped while this ran, so it may or may not have happened; look"
    " before you retry"
)
_NUDGES = {
    "": "Use a tool. When the work is finished, call submit with a summary.",
    "cut": "Your reply was cut at its greatest length. Be brief, and use a tool.",
    "refused": (
        "Your reply was withheld. This is ordinary work on code: go on with a tool, or submit and"
        " say why not."
    ),
}
_GRACE = 300.0  # seconds a step may still take when the time is over; then it is cut off
_IDLE = 3  # replies in a row without a tool call that end a run


class ModelSelector:
    """Who thinks in a run. A person may choose another model; it thinks from the next step on."""

    def __init__(self, select: SelectModel, model: str) -> None:
        self._select = select
        self._model = model
        self._current: LanguageModel | None = None

    def switch_model(self, model: str) -> None:
        self._model = model
        self._current = None

    async def get_model(self) -> LanguageModel:
        """Raises RunEnded when there is no such model: a person may choose another, and the run
        goes on."""
        while self._current is None:
            wanted = self._model
            try:
                brain = await self._select(wanted)
            except Refused as refused:
                raise RunEnded(Halted(reason=str(refused))) from None
            if wanted == self._model:  # else another was chosen while this one's library was loaded
                self._current = brain
        return self._current


class TranscriptRecorder:
    """One run's transcript in memory and in the database, which are always the same."""

    def __init__(
        self,
        run: str,
        transcripts: Transcripts,
        messages: list[Message],
        budget: Budget,
        live_events: LiveEvents,
    ) -> None:
        self._run = run
        self._transcripts = transcripts
        self.messages = messages
        self._budget = budget
        self._stored_at = budget.seconds
        self._live_events = live_events

    async def append(self, message: Message) -> None:
        spent = self._budget.seconds
        await self._transcripts.append(
            self._run, len(self.messages), message, spent - self._stored_at
        )
        self._stored_at = spent
        self.messages.append(message)

    def publish_delta(self, kind: DeltaKind, text: str) -> None:
        """A piece of the reply that will be the next message."""
        self._live_events.publish(
            ReplyDelta(run=self._run, seq=len(self.messages), kind=kind, text=text)
        )

    @property
    def replies(self) -> list[Message]:
        """What models said so far, one reply a step."""
        return [message for message in self.messages if message.role == "assistant"]

    @property
    def usage(self) -> Usage:
        return sum_usage([message.usage for message in self.messages])

    def unanswered_calls(self) -> list[ToolCall]:
        """The tool calls of the last reply that have no answer yet."""
        answered = {message.call for message in self.messages if message.role == "tool"}
        for message in reversed(self.messages):
            if message.role == "assistant":
                return [call for call in message.calls if call.id not in answered]
        return []


async def run_agent(
    selector: ModelSelector,
    toolbox: Toolbox,
    recorder: TranscriptRecorder,
    budget: Budget,
    *,
    after_step: Callable[[], Awaitable[None]],
    notice: Message | None = None,
) -> Outcome:
    """Run to the end and return the outcome; `news` is said before the first step, `between` called
    after each.

    Raises Unavailable when the model cannot be asked now.
    """
    begun = len(recorder.messages)
    try:
        async with asyncio.timeout(max(0.0, budget.seconds_left) + _GRACE) as deadline:
            await _answer_interrupted_calls(toolbox, recorder)
            if notice:
                await recorder.append(notice)
            while True:
                await run_step(selector, toolbox, recorder, budget)
                await after_step()
    except RunEnded as end:
        outcome: Outcome = end.outcome  # type: ignore[assignment]
        return outcome
    except TimeoutError:
        if not deadline.expired():
            raise  # somebody else's
        return budget.out_of_time()
    except Unavailable as outage:
        raise Unavailable(
            str(outage), retry_in=outage.retry_in, made_progress=len(recorder.messages) > begun
        ) from None


async def run_step(
    selector: ModelSelector, toolbox: Toolbox, recorder: TranscriptRecorder, budget: Budget
) -> None:
    """One model call and the tools it asks for."""
    brain = await selector.get_model()
    known = sum(message.usage.usd or 0.0 for message in recorder.messages)
    budget.check_limits(len(recorder.replies), known, is_priced=brain.is_priced)
    reply = _make_call_ids_unique(
        await brain.reply(recorder.messages, toolbox.list_tools(), recorder.publish_delta), recorder
    )
    await recorder.append(reply)
    for call in reply.calls:
        await _call_tool(toolbox, recorder, call)
    if not reply.calls:
        await _nudge_model(recorder, reply)


def _make_call_ids_unique(reply: Message, recorder: TranscriptRecorder) -> Message:
    """No vendor promises that a call's id is its own: those of a reply with one that was there
    before are made so.

    The vendor's form of such a reply would hold the old ids, so it is left.
    """
    before = {call.id for message in recorder.messages for call in message.calls}
    ids = [call.id for call in reply.calls]
    if len(set(ids)) == len(ids) and not before & set(ids):
        return reply
    calls = (
        replace(call, id=f"call-{len(recorder.messages)}-{n}") for n, call in enumerate(reply.calls)
    )
    return replace(reply, calls=tuple(calls), state={})


async def _nudge_model(recorder: TranscriptRecorder, reply: Message) -> None:
    """A reply that does nothing is answered; a model that goes on so has given up."""
    if (
        not any(message.calls for message in recorder.replies[-_IDLE:])
        and len(recorder.replies) >= _IDLE
    ):
        what = "refused to go on" if reply.end == "refused" else "stopped using its tools"
        said = f"; it said: {reply.text}" if reply.text else ""
        raise RunEnded(GaveUp(reason=f"the model {what}{said}"))
    await recorder.append(Message(role="user", text=_NUDGES[reply.end]))


async def _call_tool(toolbox: Toolbox, recorder: TranscriptRecorder, call: ToolCall) -> None:
    if call.broken:
        answer = ToolAnswer(text=f"{call.name} was not run: {call.broken}")
    else:
        answer = await toolbox.call_tool(call.name, call.args)
    await recorder.append(_tool_message(call, answer))


async def _answer_interrupted_calls(toolbox: Toolbox, recorder: TranscriptRecorder) -> None:
    """After a crash: what can be repeated is repeated; of the rest the first may have run, the
    others have not."""
    if (
        recorder.messages
        and recorder.messages[-1].role == "assistant"
        and not recorder.messages[-1].calls
    ):
        await _nudge_model(recorder, recorder.messages[-1])
    for n, call in enumerate(recorder.unanswered_calls()):
        if call.name in _REPEATABLE or n > 0:
            await _call_tool(toolbox, recorder, call)
        else:
            await recorder.append(_tool_message(call, ToolAnswer(text=INTERRUPTED)))


def _tool_message(call: ToolCall, answer: ToolAnswer) -> Message:
    return Message(role="tool", text=answer.text, call=call.id, ran=answer.ran)
