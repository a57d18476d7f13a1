"""Requests: a new task, a task that is requested again, and a request that is withdrawn."""

import re
from dataclasses import replace

from osiris.core import events as e
from osiris.core.decide.runs import start_round
from osiris.core.task import State, Task


def create_task(event: e.TaskRequested) -> Task:
    """Return the task of an issue that had none."""
    return Task(
        issue=event.issue,
        title=event.title,
        body=event.body,
        requester=event.actor.login,
        branch=branch_name(event.issue.number, event.title, 1),
        subscribers=(event.address,) if event.address else (),
    )


def record_facts(was: Task, task: Task, event: e.TaskEvent) -> Task | None:
    """Return the task with the facts of a request; None for events of other topics."""
    match event:
        case e.TaskRequested():
            return restart_task(was, update_request(task, event))
        case e.RequestWithdrawn(by=by):
            return replace(task, reason=f"{by} withdrew the request")
        case e.IssueDropped(by=by):
            return replace(task, reason=f"{by} closed the issue as not planned")
        case _:
            return None


def update_request(task: Task, event: e.TaskRequested | e.RetryRequested) -> Task:
    """Return the task with the issue's text as it is now, where the event has it."""
    return replace(task, title=event.title, body=event.body) if event.title else task


def restart_task(was: Task, task: Task) -> Task:
    """Return a task that ended with a new run: on the same branch, or after a rejection or a merge
    on a new one, so that no branch is ever forced."""
    if was.state not in (State.REJECTED, State.DONE):
        failure = was.reason if was.state is State.FAILED else ""
        return replace(start_round(task, *task.reviews, *task.waiting), failure=failure)
    generation = task.generation + 1
    branch = branch_name(task.issue.number, task.title, generation)
    again = replace(task, generation=generation, branch=branch, pull=None, head=None, work=None)
    return start_round(again)


def branch_name(number: int, title: str, generation: int) -> str:
    """Return `osiris/<issue>-<slug>`; from the second generation on with its number behind it."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-") or "task"
    return f"osiris/{number}-{slug}" + (f"-{generation}" if generation > 1 else "")
