"""What the vendors said, and whether it comes back to them as they said it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from fake_vendors.wire import ModelReply, ReplyRecord, VendorError
from osiris.core.ports.models import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    vendor: str
    reply: ModelReply
    kept: ReplyRecord
    scripted: bool


class Ledger:
    """Every turn of every vendor. What another vendor said is nobody's secret: it may come without
    its state."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}
        self._asides: set[str] = set()
        self._answers: dict[str, Message] = {}

    def issue(self, vendor: str, reply: ModelReply, kept: ReplyRecord, *, scripted: bool) -> None:
        """Remember a reply; one that is not `scripted` took the place of one that is."""
        turn = _Turn(vendor=vendor, reply=reply, kept=kept, scripted=scripted)
        self._turns.update(dict.fromkeys(kept.keys, turn))
        if not scripted and not reply.calls:
            self._asides.add(reply.text.strip())

    def verify(self, vendor: str, transcript: Sequence[Message], *, anywhere: bool) -> None:
        """Raises Denied, saying what is missing, when a turn of this vendor or an answer to any
        call is not whole."""
        for message in transcript:
            if message.role == "assistant":
                for turn in self._turns_of(message):
                    if turn.vendor == vendor:
                        _compare(turn, message)
        (_answered_anywhere if anywhere else _answered_at_once)(transcript)

    def scripted(self, transcript: Sequence[Message]) -> list[Message]:
        """The transcript without the turns that no script has, and without the answers to them.

        An answer is the one that first came: a client may leave older ones out to make room.
        """
        gone: set[str] = set()
        found = []
        for message in transcript:
            if message.role == "assistant" and self._is_aside(message):
                gone.update(call.id for call in message.calls)
            elif message.call not in gone:
                found.append(self._first(message))
        return found

    def _first(self, message: Message) -> Message:
        """Only our own ids are unique over all conversations."""
        return (
            self._answers.setdefault(message.call, message)
            if message.call in self._turns
            else message
        )

    def _turns_of(self, message: Message) -> list[_Turn]:
        found = {id(turn): turn for key in _keys(message) if (turn := self._turns.get(key))}
        return list(found.values())

    def _is_aside(self, message: Message) -> bool:
        turns = self._turns_of(message)
        if turns:
            return not any(turn.scripted for turn in turns)
        return not message.calls and message.text.strip() in self._asides


def _keys(message: Message) -> list[str]:
    return [*message.state["keys"], *(call.id for call in message.calls)]


def _compare(turn: _Turn, message: Message) -> None:
    which = turn.reply.calls[0].id if turn.reply.calls else turn.reply.id
    for name, state in turn.kept.states.items():
        if state not in message.state["states"]:
            raise VendorError(
                400, f"the {name} of the assistant's turn {which} is missing, or is not what it was"
            )
    there = {call.id for call in message.calls}
    for call in turn.reply.calls:
        if call.id not in there:
            raise VendorError(
                400, f"the tool call {call.id} of the assistant's turn {which} is missing"
            )


def _answered_at_once(transcript: Sequence[Message]) -> None:
    """Raises Denied when a call is not answered once, before anything else is said, or an answer
    has no call."""
    for at, message in enumerate(transcript):
        if message.role == "assistant":
            answers = takewhile(lambda later: later.role == "tool", transcript[at + 1 :])
            _fit([call.id for call in message.calls], [answer.call for answer in answers])
        elif message.role == "tool" and transcript[at - 1].role not in ("assistant", "tool"):
            raise VendorError(
                400,
                f"the answer to the tool call {message.call} does not stand right behind the call",
            )


def _answered_anywhere(transcript: Sequence[Message]) -> None:
    """Raises Denied when a call is not answered once, or an answer has no call before it."""
    calls: list[str] = []
    answers: list[str] = []
    for message in transcript:
        calls += [call.id for call in message.calls]
        if message.role == "tool":
            if message.call not in calls:
                raise VendorError(
                    400, f"No tool call found for function call output with call_id {message.call}."
                )
            answers.append(message.call)
    _fit(calls, answers)


def _fit(calls: Sequence[str], answers: Sequence[str]) -> None:
    for call in calls:
        if (times := answers.count(call)) != 1:
            raise VendorError(
                400,
                f"the tool call {call} must be answered once, right behind it; it has {times}"
                " answers",
            )
    for answer in answers:
        if answer not in calls:
            raise VendorError(400, f"there is no tool call {answer} before the answer to it")
