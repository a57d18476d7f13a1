"""What a model is sent when its window fills: one rule, and what it promises."""

from hypothesis import given, settings
from hypothesis import strategies as st

from osiris.agents.context_window import GONE, count_tokens, fit_to_window
from osiris.agents.models.fallback import REST, TRIES, FallbackModel
from osiris.core.errors import Unavailable
from osiris.core.ports.models import Message, ToolCall

ROOM = 2000  # tokens


def conversation(sizes: list[int]) -> list[Message]:
    """A brief, and for each size a call and its answer of so many characters."""
    found = [Message(role="system", text="rules " * 20), Message(role="user", text="brief " * 20)]
    for number, size in enumerate(sizes):
        call = ToolCall(id=f"c{number}", name="run_command", args={"command": f"step {number}"})
        found.append(Message(role="assistant", text=f"Step {number}.", calls=(call,)))
        found.append(Message(role="tool", text="x" * size, call=call.id))
    return found


sizes = st.lists(st.integers(0, 2500), max_size=40)


@given(sizes)
def test_only_old_outputs_of_tools_are_left_out(sizes: list[int]):
    whole = conversation(sizes)
    sent = fit_to_window(whole, ROOM)
    assert len(sent) == len(whole)
    assert sent[-4:] == whole[-4:]
    for was, now in zip(whole, sent, strict=True):
        assert was == now or (was.role == "tool" and now.text == GONE and now.call == was.call)


@given(sizes)
def test_it_fits_whenever_leaving_them_out_is_enough(sizes: list[int]):
    sent = fit_to_window(conversation(sizes), ROOM)
    stays = [
        message if message.role != "tool" else Message(role="tool", text=GONE)
        for message in sent[:-4]
    ]
    if sum(map(count_tokens, [*stays, *sent[-4:]])) <= ROOM:
        assert sum(map(count_tokens, sent)) <= ROOM


@given(sizes)
@settings(deadline=None)
def test_between_two_cuts_the_beginning_stays_the_same(sizes: list[int]):
    whole = conversation(sizes)
    before: list[Message] = []
    cuts = 0
    for end in range(2, len(whole) + 1, 2):
        sent = fit_to_window(whole[:end], ROOM)
        cuts += sent[: len(before)] != before
        before = sent
    assert cuts <= 1 + sum(map(count_tokens, whole)) // (ROOM // 4)


def test_a_short_conversation_is_sent_as_it_is():
    whole = conversation([100] * 5)
    assert fit_to_window(whole, ROOM) == whole


class Flaky:
    """A brain that fails while `down`."""

    is_priced = True

    def __init__(self, name: str, *, down: bool = False) -> None:
        self.name = name
        self.down = down
        self.asked = 0

    async def reply(self, transcript, tools, on_delta=None) -> Message:
        self.asked += 1
        if self.down:
            raise Unavailable("down")
        return Message(role="assistant", text=self.name)


def test_all_answers_to_the_newest_reply_stay_however_many():
    calls = tuple(
        ToolCall(id=f"p{n}", name="read_file", args={"path": f"{n}.py"}) for n in range(8)
    )
    answers = [Message(role="tool", text="y" * 3000, call=call.id) for call in calls]
    whole = [*conversation([2000] * 4), Message(role="assistant", text="", calls=calls), *answers]
    sent = fit_to_window(whole, ROOM)
    assert sent[-8:] == answers
    assert [message.text for message in sent if message.role == "tool"][:4] == [GONE] * 4


async def test_the_second_model_rests_again_as_soon_as_the_first_is_back():
    now = 0.0
    first = Flaky("first", down=True)
    second = Flaky("second")
    both = FallbackModel(first, second, clock=lambda: now)
    for _ in range(TRIES - 1):
        try:
            await both.reply([], [])
        except Unavailable:
            continue
        raise AssertionError("the second took over too early")
    assert [(await both.reply([], [])).text for _ in range(5)] == ["second"] * 5
    assert first.asked == TRIES  # while it rests it is not asked
    now += REST
    assert (await both.reply([], [])).text == "second"  # still down: one question was enough
    assert first.asked == TRIES + 1
    first.down = False
    now = now + REST
    assert (await both.reply([], [])).text == "first"
    first.down = True
    try:
        await both.reply([], [])
    except Unavailable:
        return
    raise AssertionError("the count begins anew")
