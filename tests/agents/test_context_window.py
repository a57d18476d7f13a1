"""The context window: what a model is sent when its window is full."""

from hypothesis import given, settings
from hypothesis import strategies as st

from osiris.agents.context_window import GONE, count_tokens, fit_to_window
from osiris.agents.models.fallback import REST, TRIES, FallbackModel
from osiris.core.errors import Unavailable
from osiris.core.ports.models import Message, ToolCall

WINDOW = 2000  # tokens


def build_conversation(sizes: list[int]) -> list[Message]:
    """Return a briefing, and for each size a call and its answer of that many characters."""
    messages = [
        Message(role="system", text="rules " * 20),
        Message(role="user", text="brief " * 20),
    ]
    for number, size in enumerate(sizes):
        call = ToolCall(id=f"c{number}", name="run_command", args={"command": f"step {number}"})
        messages.append(Message(role="assistant", text=f"Step {number}.", calls=(call,)))
        messages.append(Message(role="tool", text="x" * size, call=call.id))
    return messages


sizes = st.lists(st.integers(0, 2500), max_size=40)


@given(sizes)
def test_only_old_outputs_of_tools_are_left_out(sizes: list[int]):
    whole = build_conversation(sizes)
    sent = fit_to_window(whole, WINDOW)
    assert len(sent) == len(whole)
    assert sent[-4:] == whole[-4:]
    for original, sent_message in zip(whole, sent, strict=True):
        assert original == sent_message or (
            original.role == "tool"
            and sent_message.text == GONE
            and sent_message.call == original.call
        )


@given(sizes)
def test_it_fits_whenever_leaving_them_out_is_enough(sizes: list[int]):
    sent = fit_to_window(build_conversation(sizes), WINDOW)
    kept_messages = [
        message if message.role != "tool" else Message(role="tool", text=GONE)
        for message in sent[:-4]
    ]
    if sum(map(count_tokens, [*kept_messages, *sent[-4:]])) <= WINDOW:
        assert sum(map(count_tokens, sent)) <= WINDOW


@given(sizes)
@settings(deadline=None)
def test_between_two_cuts_the_beginning_stays_the_same(sizes: list[int]):
    whole = build_conversation(sizes)
    before: list[Message] = []
    cuts = 0
    for end in range(2, len(whole) + 1, 2):
        sent = fit_to_window(whole[:end], WINDOW)
        cuts += sent[: len(before)] != before
        before = sent
    assert cuts <= 1 + sum(map(count_tokens, whole)) // (WINDOW // 4)


def test_a_short_conversation_is_sent_as_it_is():
    whole = build_conversation([100] * 5)
    assert fit_to_window(whole, WINDOW) == whole


class FlakyModel:
    """A model that fails while `down` is set."""

    is_priced = True

    def __init__(self, name: str, *, down: bool = False) -> None:
        self.name = name
        self.down = down
        self.request_count = 0

    async def reply(self, transcript, tools, on_delta=None) -> Message:
        self.request_count += 1
        if self.down:
            raise Unavailable("down")
        return Message(role="assistant", text=self.name)


def test_all_answers_to_the_newest_reply_stay_however_many():
    calls = tuple(
        ToolCall(id=f"p{n}", name="read_file", args={"path": f"{n}.py"}) for n in range(8)
    )
    answers = [Message(role="tool", text="y" * 3000, call=call.id) for call in calls]
    whole = [
        *build_conversation([2000] * 4),
        Message(role="assistant", text="", calls=calls),
        *answers,
    ]
    sent = fit_to_window(whole, WINDOW)
    assert sent[-8:] == answers
    assert [message.text for message in sent if message.role == "tool"][:4] == [GONE] * 4


async def test_the_second_model_rests_again_as_soon_as_the_first_is_back():
    now = 0.0
    first = FlakyModel("first", down=True)
    second = FlakyModel("second")
    both = FallbackModel(first, second, clock=lambda: now)
    for _ in range(TRIES - 1):
        try:
            await both.reply([], [])
        except Unavailable:
            continue
        raise AssertionError("the second took over too early")
    assert [(await both.reply([], [])).text for _ in range(5)] == ["second"] * 5
    assert first.request_count == TRIES  # while it rests, it gets no requests
    now += REST
    assert (await both.reply([], [])).text == "second"  # still down: one request was enough
    assert first.request_count == TRIES + 1
    first.down = False
    now = now + REST
    assert (await both.reply([], [])).text == "first"
    first.down = True
    try:
        await both.reply([], [])
    except Unavailable:
        return
    raise AssertionError("the count did not start again")
