"""What a run is told of a review: people's words first, and what is left out is said."""

import time

from osiris.agents import briefing
from osiris.core.effects import Purpose, StartRun
from osiris.core.events import IssueRef, Review, Thread


def brief_of(*threads: Thread, text: str = "Please look again.") -> str:
    review = Review(by="alice", text=text, threads=threads)
    order = StartRun(
        issue=IssueRef("acme/shop", 1),
        run=2,
        purpose=Purpose.REVISE,
        title="A title",
        body="A body",
        branch="osiris/1-a-title",
        steps=10,
        minutes=10,
        reviews=(review,),
    )
    return briefing.build_messages(order, {})[1].text


def thread(text: str, hunk: str = "@@ -1 +1 @@") -> Thread:
    return Thread(path="src/app.py", line=7, hunk=hunk, text=text)


def test_no_length_of_code_drops_a_persons_words():
    told = brief_of(
        thread("the first", hunk="+x\n" * 20_000), thread("the second", hunk="+y\n" * 20_000)
    )
    assert "the first" in told
    assert "the second" in told
    assert told.count("</thread>") == 2


def test_the_end_of_the_code_is_shown_where_the_comment_stands():
    told = brief_of(
        thread("why?", hunk="@@ -1,600 +1,600 @@\n" + "+line\n" * 5_000 + "+the line in question")
    )
    assert "+the line in question\n---\nwhy?" in told


def test_what_does_not_fit_is_counted():
    told = brief_of(*(thread("x" * 5_000) for _ in range(20)))
    shown = told.count("<thread ")
    assert shown == told.count("</thread>")
    assert f"[{20 - shown} more comments of this review are not shown here.]" in told
    assert len(told) < 40_000


def test_many_large_comments_are_not_read_to_their_end():
    threads = [thread("x" * 60_000, hunk="+y\n" * 20_000) for _ in range(500)]
    began = time.thread_time()
    brief_of(*threads)
    whole = time.thread_time() - began
    began = time.thread_time()
    brief_of(*threads[:50])
    assert whole < 5 * (time.thread_time() - began) + 0.05
