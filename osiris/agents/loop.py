"""The agent loop: ask the brain, use the tools, until a tool ends the run or the budget does.

The transcript is the only state, and every message is stored before the next thing happens: a killed run resumes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from osiris.agents.budget import Budget, total
from osiris.core.errors import Refused, RunEnded, Unavailable
from osiris.core.events import Usage
from osiris.core.ports.live import Delta, Journal
from osiris.core.ports.models import (
    Brain,
    Choose,
    GaveUp,
    Halted,
    Kind,
    Message,
    Outcome,
    ToolAnswer,
    Toolbox,
    ToolCall,
)
from osiris.core.ports.storage import Transcripts

_REPEATABLE = frozenset({"read_file", "list_dir", "search", "write_file", "submit"})
"""Tools that may be used again after a crash without doing anything twice."""

INTERRUPTED = (
    "interrupted: the worker stopped while this ran, so it may or may not have happened; look before you retry"
)
_NUDGES = {
    "": "Use a tool. When the work is finished, call submit with a summary.",
    "cut": "Your reply was cut at its greatest length. Be brief, and use a tool.",
    "refused": "Your reply was withheld. This is ordinary work on code: go on with a tool, or submit and say why not.",
}
_GRACE = 300.0  # seconds a step may still take when the time is over; then it is cut off
_IDLE = 3  # replies in a row without a tool call that end a run


class Mind:
    """Who thinks in a run. A person may choose another model; it thinks from the next step on."""

    def __init__(self, choose: Choose, model: str) -> None:
        self._choose, self._model = choose, model
        self._brain: Brain | None = None

    def switch(self, model: str) -> None:
        self._model, self._brain = model, None

    async def brain(self) -> Brain:
        """Raises RunEnded when there is no such model: a person may choose another, and the run goes on."""
        while self._brain is None:
            wanted = self._model
            try:
                brain = await self._choose(wanted)
            except Refused as refused:
                raise RunEnded(Halted(reason=str(refused))) from None
            if wanted == self._model:  # else another was chosen while this one's library was loaded
                self._brain = brain
        return self._brain


class Tape:
    """One run's transcript in memory and in the database, which are always the same."""

    def __init__(
        self, run: str, transcripts: Transcripts, messages: list[Message], budget: Budget, journal: Journal
    ) -> None:
        self._run, self._transcripts, self.messages = run, transcripts, messages
        self._budget, self._stored_at, self._journal = budget, budget.seconds, journal

    async def append(self, message: Message) -> None:
        spent = self._budget.seconds
        await self._transcripts.append(self._run, len(self.messages), message, spent - self._stored_at)
        self._stored_at = spent
        self.messages.append(message)

    def hear(self, kind: Kind, text: str) -> None:
        """A piece of the reply that will be the next message."""
        self._journal.hear(Delta(run=self._run, seq=len(self.messages), kind=kind, text=text))

    @property
    def replies(self) -> list[Message]:
        """What models said so far, one reply a step."""
        return [message for message in self.messages if message.role == "assistant"]

    @property
    def usage(self) -> Usage:
        return total([message.usage for message in self.messages])

    def unanswered(self) -> list[ToolCall]:
        """The tool calls of the last reply that have no answer yet."""
        answered = {message.call for message in self.messages if message.role == "tool"}
        for message in reversed(self.messages):
            if message.role == "assistant":
                return [call for call in message.calls if call.id not in answered]
        return []


async def work(
    mind: Mind,
    toolbox: Toolbox,
    tape: Tape,
    budget: Budget,
    *,
    between: Callable[[], Awaitable[None]],
    news: Message | None = None,
) -> Outcome:
    """Run to the end and return the outcome; `news` is said before the first step, `between` called after each.

    Raises Unavailable when the model cannot be asked now.
    """
    begun = len(tape.messages)
    try:
        async with asyncio.timeout(max(0.0, budget.left) + _GRACE) as deadline:
            await _answer_honestly(toolbox, tape)
            if news:
                await tape.append(news)
            while True:
                await step(mind, toolbox, tape, budget)
                await between()
    except RunEnded as end:
        outcome: Outcome = end.outcome  # type: ignore[assignment]
        return outcome
    except TimeoutError:
        if not deadline.expired():
            raise  # somebody else's
        return budget.out_of_time()
    except Unavailable as outage:
        raise Unavailable(str(outage), retry_in=outage.retry_in, got_on=len(tape.messages) > begun) from None


async def step(mind: Mind, toolbox: Toolbox, tape: Tape, budget: Budget) -> None:
    """One model call and the tools it asks for."""
    brain = await mind.brain()
    known = sum(message.usage.usd or 0.0 for message in tape.messages)
    budget.check(len(tape.replies), known, priced=brain.priced)
    reply = _named_apart(await brain.reply(tape.messages, toolbox.specs(), tape.hear), tape)
    await tape.append(reply)
    for call in reply.calls:
        await _use(toolbox, tape, call)
    if not reply.calls:
        await _nudge(tape, reply)


def _named_apart(reply: Message, tape: Tape) -> Message:
    """No vendor promises that a call's id is its own: those of a reply with one that was there before are made so.

    The vendor's form of such a reply would hold the old ids, so it is left.
    """
    before = {call.id for message in tape.messages for call in message.calls}
    ids = [call.id for call in reply.calls]
    if len(set(ids)) == len(ids) and not before & set(ids):
        return reply
    calls = (replace(call, id=f"call-{len(tape.messages)}-{n}") for n, call in enumerate(reply.calls))
    return replace(reply, calls=tuple(calls), state={})


async def _nudge(tape: Tape, reply: Message) -> None:
    """A reply that does nothing is answered; a model that goes on so has given up."""
    if not any(message.calls for message in tape.replies[-_IDLE:]) and len(tape.replies) >= _IDLE:
        what = "refused to go on" if reply.end == "refused" else "stopped using its tools"
        said = f"; it said: {reply.text}" if reply.text else ""
        raise RunEnded(GaveUp(reason=f"the model {what}{said}"))
    await tape.append(Message(role="user", text=_NUDGES[reply.end]))


async def _use(toolbox: Toolbox, tape: Tape, call: ToolCall) -> None:
    if call.broken:
        answer = ToolAnswer(text=f"{call.name} was not run: {call.broken}")
    else:
        answer = await toolbox.call(call.name, call.args)
    await tape.append(_answered(call, answer))


async def _answer_honestly(toolbox: Toolbox, tape: Tape) -> None:
    """After a crash: what can be repeated is repeated; of the rest the first may have run, the others have not."""
    if tape.messages and tape.messages[-1].role == "assistant" and not tape.messages[-1].calls:
        await _nudge(tape, tape.messages[-1])
    for n, call in enumerate(tape.unanswered()):
        if call.name in _REPEATABLE or n > 0:
            await _use(toolbox, tape, call)
        else:
            await tape.append(_answered(call, ToolAnswer(text=INTERRUPTED)))


def _answered(call: ToolCall, answer: ToolAnswer) -> Message:
    return Message(role="tool", text=answer.text, call=call.id, ran=answer.ran)
