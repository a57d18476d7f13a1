"""The replies that vendors sent, and whether clients send them back unchanged."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from fake_vendors.wire import ModelReply, ReplyRecord, VendorError
from osiris.core.ports.models import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class _Turn:
    vendor: str
    reply: ModelReply
    record: ReplyRecord
    is_scripted: bool


class ReplyLog:
    """Every turn of every vendor. A turn of another vendor may come without its state: no vendor
    can verify it."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}
        self._unscripted_texts: set[str] = set()
        self._answers: dict[str, Message] = {}

    def add_reply(
        self, vendor: str, reply: ModelReply, record: ReplyRecord, *, is_scripted: bool
    ) -> None:
        """Remember a reply. A reply that is not scripted was sent in place of a scripted one."""
        turn = _Turn(vendor=vendor, reply=reply, record=record, is_scripted=is_scripted)
        self._turns.update(dict.fromkeys(record.keys, turn))
        if not is_scripted and not reply.calls:
            self._unscripted_texts.add(reply.text.strip())

    def verify_transcript(
        self, vendor: str, transcript: Sequence[Message], *, allows_distance: bool
    ) -> None:
        """Raise VendorError, which names the missing part, if a turn of this vendor or an answer to
        any call is incomplete."""
        for message in transcript:
            if message.role == "assistant":
                for turn in self._find_turns(message):
                    if turn.vendor == vendor:
                        _compare_turn(turn, message)
        (_check_answers if allows_distance else _check_adjacent_answers)(transcript)

    def list_scripted(self, transcript: Sequence[Message]) -> list[Message]:
        """Return the transcript without the turns that are not in a script, and without the answers
        to them.

        Of several versions of an answer, the first is returned: a client may shorten older answers
        to save space.
        """
        removed_calls: set[str] = set()
        messages = []
        for message in transcript:
            if message.role == "assistant" and self._is_unscripted(message):
                removed_calls.update(call.id for call in message.calls)
            elif message.call not in removed_calls:
                messages.append(self._get_first_answer(message))
        return messages

    def _get_first_answer(self, message: Message) -> Message:
        """Return the first version of an answer. Only the ids of these servers are unique over all
        conversations."""
        return (
            self._answers.setdefault(message.call, message)
            if message.call in self._turns
            else message
        )

    def _find_turns(self, message: Message) -> list[_Turn]:
        turns = {id(turn): turn for key in _list_keys(message) if (turn := self._turns.get(key))}
        return list(turns.values())

    def _is_unscripted(self, message: Message) -> bool:
        turns = self._find_turns(message)
        if turns:
            return not any(turn.is_scripted for turn in turns)
        return not message.calls and message.text.strip() in self._unscripted_texts


def _list_keys(message: Message) -> list[str]:
    return [*message.state["keys"], *(call.id for call in message.calls)]


def _compare_turn(turn: _Turn, message: Message) -> None:
    turn_id = turn.reply.calls[0].id if turn.reply.calls else turn.reply.id
    for name, state in turn.record.states.items():
        if state not in message.state["states"]:
            raise VendorError(
                400,
                f"the {name} of the assistant's turn {turn_id} is missing, or is not what it was",
            )
    call_ids = {call.id for call in message.calls}
    for call in turn.reply.calls:
        if call.id not in call_ids:
            raise VendorError(
                400, f"the tool call {call.id} of the assistant's turn {turn_id} is missing"
            )


def _check_adjacent_answers(transcript: Sequence[Message]) -> None:
    """Raise VendorError if a call is not answered exactly once before any other message, or if an
    answer has no call."""
    for index, message in enumerate(transcript):
        if message.role == "assistant":
            answers = takewhile(lambda later: later.role == "tool", transcript[index + 1 :])
            _compare_calls([call.id for call in message.calls], [answer.call for answer in answers])
        elif message.role == "tool" and transcript[index - 1].role not in ("assistant", "tool"):
            raise VendorError(
                400,
                f"the answer to the tool call {message.call} does not stand right behind the call",
            )


def _check_answers(transcript: Sequence[Message]) -> None:
    """Raise VendorError if a call is not answered exactly once, or if an answer has no call before
    it."""
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
    _compare_calls(calls, answers)


def _compare_calls(calls: Sequence[str], answers: Sequence[str]) -> None:
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
