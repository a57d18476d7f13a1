"""Briefing of a review: people's text comes first, and what is left out is counted."""

import time

from osiris.agents import briefing
from osiris.core.effects import Purpose, StartRun
from osiris.core.events import IssueRef, Review, Thread


def build_brief(*threads: Thread, text: str = "Please look again.") -> str:
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


def create_thread(text: str, hunk: str = "@@ -1 +1 @@") -> Thread:
    return Thread(path="src/app.py", line=7, hunk=hunk, text=text)


def test_no_length_of_code_drops_a_persons_words():
    brief = build_brief(
        create_thread("the first", hunk="+x\n" * 20_000),
        create_thread("the second", hunk="+y\n" * 20_000),
    )
    assert "the first" in brief
    assert "the second" in brief
    assert brief.count("</thread>") == 2


def test_the_end_of_the_code_is_shown_where_the_comment_stands():
    brief = build_brief(
        create_thread(
            "why?", hunk="@@ -1,600 +1,600 @@\n" + "+line\n" * 5_000 + "+the line in question"
        )
    )
    assert "+the line in question\n---\nwhy?" in brief


def test_what_does_not_fit_is_counted():
    brief = build_brief(*(create_thread("x" * 5_000) for _ in range(20)))
    shown_count = brief.count("<thread ")
    assert shown_count == brief.count("</thread>")
    assert f"[{20 - shown_count} more comments of this review are not shown here.]" in brief
    assert len(brief) < 40_000


def test_many_large_comments_are_not_read_to_their_end():
    threads = [create_thread("x" * 60_000, hunk="+y\n" * 20_000) for _ in range(500)]
    began = time.thread_time()
    build_brief(*threads)
    seconds_for_all = time.thread_time() - began
    began = time.thread_time()
    build_brief(*threads[:50])
    assert seconds_for_all < 5 * (time.thread_time() - began) + 0.05
