"""The part of a transcript that a model is sent: all of it until it approaches the context window.

The rule: the instructions, the brief, all text and calls of the model, and the newest tool answers
stay; the oldest tool answers are dropped first, each replaced by one line. Whenever the
conversation has outgrown the room, it is cut to half of it. Between two cuts its beginning stays
the same, byte for byte, so the vendors' caches hold. The rule depends only on the transcript: a run
that resumes sends what it sent before.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

from osiris.core.ports.models import Message

GONE = "[this older output was left out; look again if you need it]"
_BYTES = 3.0  # per token; prose and code have more, so this overestimates the tokens
_NEWEST = 4  # messages at the end that are always kept


def fit_to_window(transcript: Sequence[Message], room: int) -> list[Message]:
    """Return the transcript as it is sent into a window of `room` tokens.

    Messages that must stay are never dropped, so the result may still be larger.
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
    """Drop tool answers, from the oldest on, until half of the room is free.

    Returns the index where that ended, and the tokens that are left.
    """
    newest = next((n for n in range(at, -1, -1) if transcript[n].role == "assistant"), at)
    # all answers to the last reply stay: the model has not seen them yet
    last = max(gone, min(at + 1 - _NEWEST, newest))
    while gone < last and total > room // 2:
        if transcript[gone].role == "tool" and sizes[gone] > _LEFT:
            total -= sizes[gone] - _LEFT
            sizes[gone] = _LEFT
        gone += 1
    return gone, total


def count_tokens(message: Message) -> int:
    """Return the approximate number of tokens of a message."""
    words = message.text + "".join(
        json.dumps(dict(call.args), ensure_ascii=False) for call in message.calls
    )
    return int(len(words.encode("utf-8", "replace")) / _BYTES) + 8


# tokens of an output that was dropped
_LEFT = count_tokens(Message(role="tool", text=GONE))
