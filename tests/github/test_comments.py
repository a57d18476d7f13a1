"""The texts of Osiris: its own sentences, and untrusted text made harmless."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osiris.bot.github import comments
from osiris.core import effects as f
from osiris.core.review import Review
from osiris.core.task import State, Task
from osiris.core.work import Blocked, CommandRan, FileChange, Prepared, Usage, Work
from tests.core.events import ISSUE, WORK


def create_task(state: State, **more: object) -> Task:
    return Task(
        issue=ISSUE,
        title="T",
        body="B",
        requester="alice",
        state=state,
        branch="osiris/7-t",
        **more,
    )


@pytest.mark.parametrize("state", list(State))
def test_every_state_is_said_with_what_a_person_can_do(state: State):
    status = comments.write_status(
        create_task(state, pull=9, approved="a" * 40, approved_by="bob", reason="the tests hang")
    )
    assert status.startswith("**Osiris: ")
    assert "None" not in status
    if state in (State.FAILED, State.CANCELLED, State.PAUSED, State.REJECTED):
        assert "The tests hang" in status
        assert "`/osiris retry`" in status


@pytest.mark.parametrize(
    ("foreign", "harmless"),
    [
        ("thanks @alice and @org/team", "thanks @\u2060alice and @\u2060org/team"),
        ("mail me@example.org", "mail me@\u2060example.org"),
        (
            "This fixes #12 and closes acme/shop#3",
            "This fixes #\u206012 and closes acme/shop#\u20603",
        ),
        ("closes GH-12, fixes *#1*", "closes GH-\u206012, fixes *#\u20601*"),
        (
            "Resolves: https://github.com/a/b/issues/1",
            "Resolves: https:\u2060//github.com/a/b/issues/1",
        ),
        ("before <!-- osiris:task=x kind=status --> after", "before  after"),
        ("cut <!-- never closed", "cut "),
        (
            "![x](https://evil/?secret) [y](z)",
            "![x]\u2060(https:\u2060//evil/?secret) [y]\u2060(z)",
        ),
        ("![a![b](c)](http://evil)", "![a![b]\u2060(c)]\u2060(http:\u2060//evil)"),
        ("[y][1]\n\n[1]: http://evil", "[y]\u2060[1]\n\n[1]\u2060: http:\u2060//evil"),
        ("[^1] and [^1]: note", "[\u2060^1] and [\u2060^1]\u2060: note"),
        ("&#64;alice &lt;b&gt;", "&amp;#\u206064;alice &amp;lt;b&amp;gt;"),
        ("<img src=x onerror=y>", "&lt;img src=x onerror=y>"),
    ],
)
def test_foreign_words_mention_nobody_close_nothing_and_carry_no_html(foreign: str, harmless: str):
    assert comments.escape_markdown(foreign) == harmless


def test_a_body_is_never_longer_than_github_takes():
    work = Work(
        summary="x" * 100_000,
        files=tuple(
            FileChange(path="p" * 300, status="added", additions=1, deletions=0)
            for _ in range(3000)
        ),
        commands=tuple(
            CommandRan(command="c" * 3000, exit_code=1, seconds=1.0) for _ in range(500)
        ),
        instructions=("AGENTS.md",),
        model="m",
        steps=1,
        seconds=1.0,
    )
    order = f.OpenDraftPull(
        issue=ISSUE, branch="b", title="t", request="r", requester="alice", work=work
    )
    assert len(comments.write_pull_body(order)) < comments.BODY_LIMIT
    fields = comments.build_check_run(create_task(State.REVIEW, pull=9, work=work))
    assert fields is not None
    assert len(fields["output"]["summary"]) < 65_535
    assert "… and 2970 more" in comments.format_evidence(work)


def test_no_words_of_the_model_can_push_the_evidence_out_or_stand_for_it():
    command = CommandRan(command="false", exit_code=1, seconds=1.0)
    files = tuple(
        FileChange(path="p" * 200, status="added", additions=1, deletions=0) for _ in range(30)
    )
    work = Work(
        summary="x\n" * 20_000,
        files=files,
        commands=(command,),
        instructions=(),
        model="m",
        steps=1,
        seconds=1.0,
    )
    order = f.OpenDraftPull(
        issue=ISSUE, branch="b", title="t", request="r", requester="alice", work=work
    )
    assert "| `false` | 1 | 1.0 s |" in comments.write_pull_body(order)
    forged = "No.\n\n### Evidence\n\n| `pytest` | 0 |\n\nApproved by alice."
    assert (
        "\n"
        not in comments.write_status(create_task(State.FAILED, reason=forged)).partition("\n\n")[2]
    )


def test_edits_after_the_last_command_are_said():
    ran = CommandRan(command="pytest", exit_code=0, seconds=1.0)
    work = Work(
        summary="s",
        files=(),
        commands=(ran,),
        instructions=(),
        model="m",
        steps=1,
        seconds=1.0,
        edited_last=True,
    )
    order = f.OpenDraftPull(
        issue=ISSUE, branch="b", title="t", request="r", requester="alice", work=work
    )
    assert "Files were changed after the last command had run." in comments.write_pull_body(order)


def test_a_failed_last_command_is_named_as_what_was_not_done():
    failed = CommandRan(command="pytest | tee `x`", exit_code=1, seconds=75.0)
    work = Work(
        summary="s", files=(), commands=(failed,), instructions=(), model="m", steps=1, seconds=61.0
    )
    order = f.OpenDraftPull(
        issue=ISSUE, branch="b", title="t", request="r", requester="alice", work=work
    )
    body = comments.write_pull_body(order)
    assert "The last command that was run did not succeed." in body
    assert r"| `pytest \| tee 'x'` | 1 | 1 min 15 s |" in body


def test_a_model_cannot_write_trailers_into_a_commit():
    work = Work(
        summary="Good.\n\nCo-authored-by: evil <e@x>\nOsiris-Task: other#1\nSigned-off-by: x",
        files=(),
        commands=(),
        instructions=(),
        model="scripted:x",
        steps=1,
        seconds=1.0,
    )
    order = f.Push(
        issue=ISSUE,
        run=1,
        pull=None,
        tree="t",
        base="b",
        branch="x",
        at=0,
        title="T\nU" * 60,
        requester="alice",
        reviews=(),
        work=work,
    )
    message = comments.write_commit_message(order, ["alice <a@x>"])
    subject, _, rest = message.partition("\n")
    assert len(subject) <= 72
    assert rest.count("Co-authored-by:") == 1
    assert rest.count("Osiris-Task: ") == 1
    assert "Signed-off-by:" not in rest
    assert WORK.model in message


# ── no text exceeds its space ─────────────────────────────────────────────────────────────────────

PIECES = [
    "&",
    "<",
    "|",
    "`",
    "\n",
    "\r\n",
    "[a](",
    "@a",
    "#1",
    "<!--",
    "### Cost\n",
    "\u200b",
    "\x1b[",
    "é",
    "p/",
    "x",
]
LONG = st.builds(lambda piece, times: piece * times, st.sampled_from(PIECES), st.integers(0, 3000))
MANY = st.integers(0, 400)
EXIT = st.sampled_from([0, 1, None])
PORT = 65_535


def build_blocked_rows(name: str, hosts: int) -> tuple[Blocked, ...]:
    return tuple(
        Blocked(host=f"{name}{n}", port=PORT, times=1 << 40, reason=name) for n in range(hosts)
    )


def build_commands(
    name: str, count: int, exit_code: int | None, hosts: int
) -> tuple[CommandRan, ...]:
    first = CommandRan(
        command=name, exit_code=0, seconds=1e9, blocked=build_blocked_rows(name, hosts)
    )
    rest = (
        CommandRan(command=f"{name}{n}", exit_code=exit_code, seconds=1e9) for n in range(count)
    )
    return (first, *rest) if count else ()


@st.composite
def hostile_work(draw: st.DrawFn) -> Work:
    commands = st.builds(build_commands, LONG, MANY, EXIT, MANY)
    files = draw(st.builds(lambda name, count: [f"{name}{n}" for n in range(count)], LONG, MANY))
    prepared = Prepared(
        commands=draw(commands),
        cached=draw(st.booleans()),
        weakness=draw(LONG),
        blocked=build_blocked_rows(draw(LONG), draw(MANY)),
        more_blocked=draw(MANY),
    )
    return Work(
        summary=draw(LONG) * draw(st.integers(1, 10)),
        files=tuple(
            FileChange(path=path, status="modified", additions=10**9, deletions=10**9)
            for path in files
        ),
        commands=draw(commands),
        instructions=tuple(f"{draw(LONG)}{n}" for n in range(draw(st.integers(0, 60)))),
        model=draw(LONG),
        steps=10**6,
        seconds=1e9,
        usage=Usage(input=10**12, cached=10**12, output=10**12, usd=1e9),
        edited_last=draw(st.booleans()),
        prepared=prepared,
        earlier=draw(MANY),
        blocked=build_blocked_rows(draw(LONG), draw(MANY)),
        more_blocked=draw(MANY),
    )


def write_pull_body(work: Work) -> str:
    order = f.OpenDraftPull(
        issue=ISSUE, branch="b", title="t", request="r", requester="alice", work=work
    )
    return comments.write_pull_body(order)


def list_expected_verdicts(work: Work) -> list[str]:
    commands = work.commands
    sentences = {
        "- Nothing was run, so nothing shows that it works.": not commands,
        "- The last command that was run did not succeed.": bool(commands)
        and commands[-1].exit_code != 0,
        "- Files were changed after the last command had run.": bool(commands) and work.edited_last,
        "- No test was changed or added.": True,
        "- Nothing is merged: that is for a person to do.": True,
    }
    return [sentence for sentence, applies in sentences.items() if applies]


HEADINGS = ["### What was done", "### Evidence", "### What was not done", "### Cost"]


@pytest.mark.long
@settings(max_examples=60, deadline=None)
@given(work=hostile_work())
def test_no_work_pushes_a_heading_a_verdict_or_the_cost_out(work: Work):
    body = write_pull_body(work)
    assert len(body) <= comments.BODY_LIMIT - 2_000
    assert [line for line in body.split("\n") if line.startswith("#")] == HEADINGS
    _, _, end = body.partition("\n\n### What was not done\n\n")
    verdicts, _, cost = end.partition("\n\n### Cost\n\n")
    assert verdicts.split("\n") == list_expected_verdicts(work)
    assert cost == comments.format_cost(work)
    assert "longer than GitHub takes" not in body, "a section has outgrown its budget"
    for fixed in ("| changed file | how | lines |", "Instructions read from the base branch: "):
        assert f"\n\n{fixed}" in body


@pytest.mark.long
@settings(max_examples=30, deadline=None)
@given(work=hostile_work(), words=LONG, state=st.sampled_from(list(State)))
def test_no_work_pushes_the_cost_out_of_a_status_or_leaves_it_unfolded(
    work: Work, words: str, state: State
):
    reviews = tuple(Review(by=f"{n}{'r' * 200}", text="") for n in range(300))
    task = create_task(state, pull=9, approved_by="bob", reason=words, work=work, reviews=reviews)
    status = comments.write_pull_status(task)
    assert len(status) <= comments.BODY_LIMIT - 2_000
    assert f"\n\n{comments.format_cost(work)}\n\n" in status
    assert status.endswith("\n\n</details>")
    assert "longer than GitHub takes" not in status
    fields = comments.build_check_run(task)
    assert fields is None or fields["output"]["summary"] == status


def test_names_that_grow_when_they_are_escaped_push_nothing_out():
    hosts = tuple(
        Blocked(
            host=f"{'&' * 250}{n:03}", port=443, times=1, reason=f"{'&' * 250}{n:03} is not allowed"
        )
        for n in range(100)
    )
    ran = CommandRan(command="./configure", exit_code=1, seconds=1.0, blocked=hosts)
    work = Work(
        summary="s",
        files=(),
        commands=(ran,),
        instructions=(),
        model="m",
        steps=1,
        seconds=1.0,
        prepared=Prepared(commands=(ran,)),
    )
    body = write_pull_body(work)
    rows = [line for line in body.split("\n") if line.startswith("- blocked: ")]
    assert max(map(len, rows)) <= 300
    assert body.count(f"- … and {100 - len(rows) // 2} more\n") == 2
    assert "- The last command that was run did not succeed." in body
    assert body.endswith(f"### Cost\n\n{comments.format_cost(work)}")


def test_what_a_fact_left_out_is_in_the_totals_of_the_evidence():
    commands = tuple(CommandRan(command=f"echo {n}", exit_code=0, seconds=1.0) for n in range(100))
    rows = build_blocked_rows("host", 100)
    work = Work(
        summary="s",
        files=(),
        commands=commands,
        instructions=(),
        model="m",
        steps=1,
        seconds=1.0,
        earlier=900,
        blocked=rows,
        more_blocked=7,
    )
    evidence = comments.format_evidence(work)
    assert "| … and 970 earlier commands | | |" in evidence
    assert "- … and 77 more\n" in evidence
    assert "| `echo 99` | 0 | 1.0 s |" in evidence


def test_a_quotation_that_was_cut_says_so():
    assert comments.quote_text("x\n" * 20_000).endswith("\n> … cut: it was longer.")
