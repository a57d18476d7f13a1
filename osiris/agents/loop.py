"""The agent loop: call the model, run the tools it asks for, until a tool or the budget ends the
run.

The transcript is the only state, and every message is stored before the next action, so a run that
was killed can resume.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from osiris.agents.budget import Budget, sum_usage
from osiris.core.errors import Refused, RunEnded, Unavailable
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
from osiris.core.work import Usage

INTERRUPTED = (
    "interrupted: the worker stopped while this ran, so it may or may not have happened; look"
    " before you retry"
)
_NUDGES = {
    "": "Use a tool. When the work is finished, call {end}.",
    "cut": "Your reply was cut at its greatest length. Be brief, and use a tool.",
    "refused": (
        "Your reply was withheld. This is ordinary work on code: go on with a tool, or submit and"
        " say why not."
    ),
}
_GRACE = 300.0  # seconds that a step may still take after the time is over; then it is cancelled
_IDLE = 3  # consecutive replies without a tool call that end a run


class ModelSelector:
    """The model of a run. A person may choose another one, which is used from the next step on."""

    def __init__(self, select: SelectModel, model: str) -> None:
        self._select = select
        self._model = model
        self._current: LanguageModel | None = None

    def switch_model(self, model: str) -> None:
        self._model = model
        self._current = None

    async def get_model(self) -> LanguageModel:
        """Return the model to call.

        Raises RunEnded when it does not exist; a person may then choose another, and the run
        continues.
        """
        while self._current is None:
            wanted = self._model
            try:
                model = await self._select(wanted)
            except Refused as refused:
                raise RunEnded(Halted(reason=str(refused))) from None
            if wanted == self._model:  # else another was chosen while this one was loaded
                self._current = model
        return self._current


class TranscriptRecorder:
    """The transcript of one run, kept identical in memory and in the database."""

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
        """Publish a piece of the reply that will become the next message."""
        self._live_events.publish(
            ReplyDelta(run=self._run, seq=len(self.messages), kind=kind, text=text)
        )

    @property
    def replies(self) -> list[Message]:
        """Return the replies of the models so far, one for each step."""
        return [message for message in self.messages if message.role == "assistant"]

    @property
    def usage(self) -> Usage:
        return sum_usage([message.usage for message in self.messages])

    def unanswered_calls(self) -> list[ToolCall]:
        """Return the tool calls of the last reply that have no answer yet."""
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
    """Run the agent to the end and return the outcome.

    `notice` is added to the transcript before the first step; `after_step` is called after each
    step. Raises Unavailable when the model cannot be reached now.
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
            raise  # not from this deadline
        return budget.out_of_time()
    except Unavailable as outage:
        raise Unavailable(
            str(outage), retry_in=outage.retry_in, made_progress=len(recorder.messages) > begun
        ) from None


async def run_step(
    selector: ModelSelector, toolbox: Toolbox, recorder: TranscriptRecorder, budget: Budget
) -> None:
    """Make one model call and run the tools that it asks for."""
    model = await selector.get_model()
    known = sum(message.usage.usd or 0.0 for message in recorder.messages)
    budget.check_limits(len(recorder.replies), known, is_priced=model.is_priced)
    reply = _make_call_ids_unique(
        await model.reply(recorder.messages, toolbox.list_tools(), recorder.publish_delta), recorder
    )
    await recorder.append(reply)
    for call in reply.calls:
        await _call_tool(toolbox, recorder, call)
    if not reply.calls:
        await _nudge_model(toolbox, recorder, reply)


def _make_call_ids_unique(reply: Message, recorder: TranscriptRecorder) -> Message:
    """Return the reply with call ids that are unique in the transcript.

    No vendor guarantees unique ids, so if one id of the reply was used before, all of them are
    replaced. The vendor's form of such a reply contains the old ids, so it is dropped.
    """
    before = {call.id for message in recorder.messages for call in message.calls}
    ids = [call.id for call in reply.calls]
    if len(set(ids)) == len(ids) and not before & set(ids):
        return reply
    calls = (
        replace(call, id=f"call-{len(recorder.messages)}-{n}") for n, call in enumerate(reply.calls)
    )
    return replace(reply, calls=tuple(calls), state={})


async def _nudge_model(toolbox: Toolbox, recorder: TranscriptRecorder, reply: Message) -> None:
    """Answer a reply without a tool call: name the tools that end the run.

    After several such replies in a row, raise RunEnded: the model has given up.
    """
    if (
        not any(message.calls for message in recorder.replies[-_IDLE:])
        and len(recorder.replies) >= _IDLE
    ):
        what = "refused to go on" if reply.end == "refused" else "stopped using its tools"
        said = f"; it said: {reply.text}" if reply.text else ""
        raise RunEnded(GaveUp(reason=f"the model {what}{said}"))
    end = " or ".join(tool.name for tool in toolbox.list_tools() if tool.ends_run)
    await recorder.append(Message(role="user", text=_NUDGES[reply.end].format(end=end)))


async def _call_tool(toolbox: Toolbox, recorder: TranscriptRecorder, call: ToolCall) -> None:
    if call.broken:
        answer = ToolAnswer(text=f"{call.name} was not run: {call.broken}")
    else:
        answer = await toolbox.call_tool(call.name, call.args)
    await recorder.append(_tool_message(call, answer))


async def _answer_interrupted_calls(toolbox: Toolbox, recorder: TranscriptRecorder) -> None:
    """Answer the calls that a crash left open.

    Calls of repeatable tools are repeated. Of the others, the first may have run, so its answer
    says that it was interrupted; the later ones did not run and are run now.
    """
    if (
        recorder.messages
        and recorder.messages[-1].role == "assistant"
        and not recorder.messages[-1].calls
    ):
        await _nudge_model(toolbox, recorder, recorder.messages[-1])
    repeatable = {tool.name for tool in toolbox.list_tools() if tool.repeatable}
    for n, call in enumerate(recorder.unanswered_calls()):
        if call.name in repeatable or n > 0:
            await _call_tool(toolbox, recorder, call)
        else:
            await recorder.append(_tool_message(call, ToolAnswer(text=INTERRUPTED)))


def _tool_message(call: ToolCall, answer: ToolAnswer) -> Message:
    return Message(role="tool", text=answer.text, call=call.id, ran=answer.ran)
