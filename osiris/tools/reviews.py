"""The `read_review` tool: it shows reviews whole, for which a brief may have no room."""

from collections.abc import Sequence

from pydantic import Field

from osiris.core.brief_text import describe_thread, find_thread, prepare_text, write_thread
from osiris.core.ports.models import ToolAnswer
from osiris.core.review import Review
from osiris.tools.context import ToolContext
from osiris.tools.files import ToolArgs

MOST_SHOWN = 16_000  # characters of an answer
_MOST_LISTED = 300  # threads


class ReadReview(ToolArgs):
    review: int = Field(1, ge=1, description="number of the review in the brief")
    thread: int = Field(
        0, ge=0, description="number of a thread; 0: the review's own text and a list of threads"
    )
    start: int = Field(1, ge=1, description="first character")


async def read_review(context: ToolContext, args: ReadReview) -> ToolAnswer:
    if args.review > len(context.reviews):
        return ToolAnswer(text=f"error: {_describe_reviews(context.reviews)}")
    review = context.reviews[args.review - 1]
    if args.thread == 0:
        return ToolAnswer(text=_cut_answer(_list_threads(review), args.start))
    if (thread := find_thread(review, args.thread)) is None:
        return ToolAnswer(text=f"error: the review has {len(review.threads)} threads")
    return ToolAnswer(text=_cut_answer(write_thread(thread, args.thread).text, args.start))


def _describe_reviews(reviews: Sequence[Review]) -> str:
    if not reviews:
        return "this task has no review yet"
    return "there is 1 review" if len(reviews) == 1 else f"there are {len(reviews)} reviews"


def _list_threads(review: Review) -> str:
    listed = [
        f"thread {number}: {describe_thread(thread)}"
        for number, thread in enumerate(review.threads[:_MOST_LISTED], 1)
    ]
    if left := len(review.threads) - len(listed):
        listed.append(f"and {left} more threads")
    return "\n".join([prepare_text(review.text).text, *listed])


def _cut_answer(text: str, start: int) -> str:
    shown = text[start - 1 : start - 1 + MOST_SHOWN]
    left = len(text) - (start - 1) - len(shown)
    if left <= 0:
        return shown or f"error: the text has {len(text)} characters"
    return f"{shown}\n[{left} more characters; go on with start={start + len(shown)}]"
