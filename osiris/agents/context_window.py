"""What of a transcript a model is sent: all of it, until that comes near the end of its window.

The rule: the instructions, the brief, every word and call of the model, and the newest tool answers
stay; the oldest tool answers go first, each leaving a line in its place. Whenever the conversation
has grown over the whole room it is cut down to half of it, so that between two cuts its beginning
stays the same, byte for byte, and the vendors' caches hold. The rule looks at nothing but the
transcript: a run that resumes is sent what it was sent before.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

from osiris.core.ports.models import Message

GONE = "[this older output was left out; look again if you need it]"
_BYTES = 3.0  # a token has more of them in prose and code: this errs to the safe side
_NEWEST = 4  # messages at the end that always stay


def fit_to_window(transcript: Sequence[Message], room: int) -> list[Message]:
    """The transcript as it is to be sent into `room` tokens.

    What may not be left out is never left out, so the result may still be larger.
    """
    sizes = [count_tokens(message) for message in transcript]
    total = gone = 0
    for at, size in enumerate(sizes):
        total += size
        if total > room:
            gone, total = _drop_oldest(transcript, sizes, gone, at, total, room)
    return [
        replace(message, text=GONE)
        if at < gone and sizes[at] == _LEFT and message.role == "tool"
        else message
        for at, message in enumerate(transcript)
    ]


def _drop_oldest(
    transcript: Sequence[Message], sizes: list[int], gone: int, at: int, total: int, room: int
) -> tuple[int, int]:
    """Leave answers out, from the oldest on, until half of the room is free; where that ended, and
    what is left."""
    newest = next((n for n in range(at, -1, -1) if transcript[n].role == "assistant"), at)
    # all answers to the last reply stay: nobody has seen them yet
    last = max(gone, min(at + 1 - _NEWEST, newest))
    while gone < last and total > room // 2:
        if transcript[gone].role == "tool" and sizes[gone] > _LEFT:
            total -= sizes[gone] - _LEFT
            sizes[gone] = _LEFT
        gone += 1
    return gone, total


def count_tokens(message: Message) -> int:
    """About how many tokens a message takes."""
    words = message.text + "".join(
        json.dumps(dict(call.args), ensure_ascii=False) for call in message.calls
    )
    return int(len(words.encode("utf-8", "replace")) / _BYTES) + 8


# what an output that was left out still takes
_LEFT = count_tokens(Message(role="tool", text=GONE))
