"""Bounds for untrusted text: how much of it a fact keeps, an agent is told, and a terminal
shows."""

import contextlib
import io
import json
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from osiris.agents.checkpoints import is_difference_notice, relocation_notice, replay_calls
from osiris.agents.submissions import Submissions
from osiris.bot.github import comments
from osiris.core import events as e
from osiris.core.effects import Purpose, StartRun
from osiris.core.ports.models import Message, ToolAnswer, ToolCall
from osiris.core.ports.repositories import Instructions
from osiris.core.work import Blocked, CommandRan, Prepared, Usage, Work
from osiris.local.terminal import Terminal
from osiris.queue import serialization
from tests.core.events import ISSUE, WORK

HOSTS = tuple(
    Blocked(host=f"{'h' * 240}{n}", port=443, times=1, reason="r" * 400) for n in range(101)
)
ORDER = StartRun(
    issue=ISSUE,
    run=1,
    purpose=Purpose.BUILD,
    title="T",
    body="B",
    reviews=(),
    branch="b",
    steps=9,
    minutes=9,
)


class FakeRepositories:
    """Repositories that import every export as one changed file."""

    async def import_pack(self, *_args: object) -> SimpleNamespace:
        return SimpleNamespace(tree="t" * 40, files=WORK.files)


class FakeSession:
    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared

    async def export(self, _base: str) -> SimpleNamespace:
        return SimpleNamespace(pack=contextlib.nullcontext())


class FakeCheckpoints:
    async def save_tree(self, *_args: object) -> None: ...


async def import_submission(ran: list[CommandRan], prepared: Prepared, summary: str = "s") -> Work:
    """Return the work of a run that ran these commands."""
    submissions = Submissions(FakeRepositories())
    messages = [Message(role="tool", text="", ran=command) for command in ran]
    run: Any = SimpleNamespace(
        order=ORDER,
        base="b" * 40,
        instructions=Instructions(texts={}),
        session=FakeSession(prepared),
        recorder=SimpleNamespace(messages=messages, replies=[], usage=Usage()),
        toolbox=SimpleNamespace(list_tools=list),
        budget=SimpleNamespace(seconds=1.0),
        checkpoints=FakeCheckpoints(),
    )
    fact = await submissions.import_work(run, summary, ())
    assert isinstance(fact, e.PatchReady)
    assert serialization.load(json.loads(json.dumps(serialization.dump(fact)))) == fact
    return fact.work


async def test_a_fact_keeps_of_many_commands_what_the_evidence_can_show_and_the_totals():
    text = "c" * 100_000
    ran = [
        CommandRan(command=f"{n} {text}", exit_code=n % 2, seconds=1.0, blocked=HOSTS)
        for n in range(300)
    ]
    setup = CommandRan(command=text[:20_000], exit_code=0, seconds=1.0, blocked=HOSTS)
    work = await import_submission(
        ran, Prepared(commands=(setup,) * 50, weakness="w"), "s" * 1_000_000
    )
    fact = e.PatchReady(issue=ISSUE, run=1, tree="t", base="b", at=0, work=work)
    assert len(json.dumps(serialization.dump(fact))) < 500_000
    assert (len(work.commands), work.earlier, work.commands[-1].exit_code) == (100, 200, 1)
    assert work.blocked[0].times == 300
    assert (len(work.blocked), work.more_blocked) == (100, 1)
    assert (work.prepared.blocked[0].times, work.prepared.more_blocked) == (50, 1)
    assert len(work.prepared.commands) == 50
    evidence = comments.format_evidence(work)
    assert "| … and 270 earlier commands | | |" in evidence
    assert "| … and 20 earlier commands | | |" in evidence
    shown_count = evidence.count("- blocked: ")
    assert evidence.count(f"- … and {101 - shown_count // 2} more\n") == 2


async def test_a_fact_of_few_commands_keeps_them_as_they_are():
    ran = [CommandRan(command="pytest", exit_code=0, seconds=1.0)]
    work = await import_submission(ran, Prepared(commands=tuple(ran)))
    assert (work.commands, work.earlier) == (tuple(ran), 0)
    assert (work.blocked, work.prepared) == ((), Prepared(commands=tuple(ran)))


def test_work_that_an_earlier_version_stored_still_shows_its_refused_hosts():
    ran = CommandRan(command="c", exit_code=0, seconds=1.0, blocked=HOSTS[:2])
    fact = e.PatchReady(issue=ISSUE, run=1, tree="t", base="b", at=0, work=WORK)
    stored = serialization.dump(fact)
    for name in ("earlier", "blocked", "more_blocked"):
        del stored["work"][name]
        stored["work"]["prepared"].pop(name, None)
    stored["work"]["commands"] = [serialization.dump(ran)]
    stored["work"]["commands"][0].pop("type")
    work = serialization.load(stored).work
    assert work.commands == (ran,)
    assert comments.format_evidence(work).count("- blocked: `hhh") == 2


class ToolboxWithOtherResults:
    """A toolbox in which every command ends with another exit code than before."""

    async def call_tool(self, _name: str, args: dict[str, str]) -> ToolAnswer:
        ran = CommandRan(command=args["command"], exit_code=1, seconds=1.0)
        return ToolAnswer(text="", ran=ran)


@pytest.mark.parametrize("count", [1, 10, 60])
async def test_an_agent_is_told_of_few_commands_that_ended_otherwise_and_of_little_of_each(count):
    text = "c" * 100_000
    ran = CommandRan(command=text, exit_code=0, seconds=1.0)
    messages = []
    for n in range(count):
        call = ToolCall(id=str(n), name="run_command", args={"command": text})
        messages.append(Message(role="assistant", text="", calls=(call,)))
        messages.append(Message(role="tool", text="", call=str(n), ran=ran))
    notice = relocation_notice(
        await replay_calls(ToolboxWithOtherResults(), messages, 0), restored=True
    )
    assert notice is not None
    assert is_difference_notice(notice)
    assert len(notice.text) < 5_000
    assert notice.text.count("ended with 1, before with 0") == min(count, 10)
    assert notice.text.endswith("; and 50 more") == (count == 60)


def test_a_long_line_of_a_diff_is_cut_and_said_to_be(monkeypatch: pytest.MonkeyPatch):
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    began = time.thread_time()
    Terminal().print_diff("+" + "\u200b" * 1_000_000 + "\n+short \u202e\n")
    assert time.thread_time() - began < 0.5
    first, second = out.getvalue().splitlines()
    assert len(first) < 20_000
    assert first.startswith("+<U+200B><U+200B>")
    assert first.endswith("… and 998001 more characters in this line")
    assert second == "+short <U+202E>"
