"""The agent loop: ask the brain, use the tools, until a tool ends the run or the budget does.

The transcript is the only state, and every message is stored before the next thing happens: a killed run resumes.
"""

from osiris.agents.budget import Budget
from osiris.errors import RunEnded
from osiris.ports import Brain, Message, Outcome, ToolAnswer, Toolbox, ToolCall, Transcripts

_REPEATABLE = frozenset({"read_file", "list_dir", "search", "write_file", "submit"})
"""Tools that may be used again after a crash without doing anything twice."""

INTERRUPTED = (
    "interrupted: the worker stopped while this ran, so it may or may not have happened; look before you retry"
)
_NUDGE = "Use a tool. When the work is finished, call submit with a summary."


class Tape:
    """One run's transcript in memory and in the database, which are always the same."""

    def __init__(self, run: str, transcripts: Transcripts, messages: list[Message], budget: Budget) -> None:
        self._run, self._transcripts, self.messages = run, transcripts, messages
        self._budget, self._stored_at = budget, budget.seconds

    async def append(self, message: Message) -> None:
        spent = self._budget.seconds
        await self._transcripts.append(self._run, len(self.messages), message, spent - self._stored_at)
        self._stored_at = spent
        self.messages.append(message)

    @property
    def steps(self) -> int:
        """Model calls so far."""
        return sum(message.role == "assistant" for message in self.messages)

    def unanswered(self) -> list[ToolCall]:
        """The tool calls of the last reply that have no answer yet."""
        answered = {message.call for message in self.messages if message.role == "tool"}
        for message in reversed(self.messages):
            if message.role == "assistant":
                return [call for call in message.calls if call.id not in answered]
        return []


async def work(brain: Brain, toolbox: Toolbox, tape: Tape, budget: Budget) -> Outcome:
    """Run to the end and return the outcome. Raises Unavailable when the model cannot be asked now."""
    try:
        await _answer_honestly(toolbox, tape)
        while True:
            await step(brain, toolbox, tape, budget)
    except RunEnded as end:
        outcome: Outcome = end.outcome  # type: ignore[assignment]
        return outcome


async def step(brain: Brain, toolbox: Toolbox, tape: Tape, budget: Budget) -> None:
    """One model call and the tools it asks for."""
    budget.check(tape.steps)
    reply = await brain.reply(tape.messages, toolbox.specs())
    await tape.append(reply)
    for call in reply.calls:
        await _use(toolbox, tape, call)
    if not reply.calls:
        await tape.append(Message(role="user", text=_NUDGE))


async def _use(toolbox: Toolbox, tape: Tape, call: ToolCall) -> None:
    answer = await toolbox.call(call.name, call.args)
    await tape.append(_answered(call, answer))


async def _answer_honestly(toolbox: Toolbox, tape: Tape) -> None:
    """After a crash: what can be repeated is repeated; of the rest the first may have run, the others have not."""
    for n, call in enumerate(tape.unanswered()):
        if call.name in _REPEATABLE or n > 0:
            await _use(toolbox, tape, call)
        else:
            await tape.append(_answered(call, ToolAnswer(text=INTERRUPTED)))


def _answered(call: ToolCall, answer: ToolAnswer) -> Message:
    return Message(role="tool", text=answer.text, call=call.id, ran=answer.ran)
