"""Runs of agents: their start, their outcome, and the next round of reviews."""

from dataclasses import replace

from osiris.core import events as e
from osiris.core.effects import Effect, Purpose, Push, Reply, StartRun, StopRun, Topic
from osiris.core.policy import Policy
from osiris.core.review import Review
from osiris.core.task import HALTED, State, Task

AT_WORK = (State.QUEUED, State.PLANNING, State.RUNNING)


def record_facts(was: Task, task: Task, event: e.TaskEvent) -> Task | None:
    """Return the task with the facts of a run; None for events of other topics."""
    match event:
        case e.PatchReady(work=work):
            return replace(task, work=work, approved=None, approved_by=None)
        case e.NothingToChange():
            return replace(task, reviews=())
        case e.Answered(text=text, actor=actor):
            return start_round(task, *task.reviews, Review(by=actor.login, text=text))
        case e.PlanApproved():
            return start_round(task, *task.reviews)
        case e.BudgetSpent(reason=reason):
            return replace(task, budget_grants=task.budget_grants + 1, reason=reason)
        case e.RunFailed(reason=text) | e.RunHalted(reason=text):
            return replace(task, reason=text)
        case e.QuestionAsked(question=text) | e.PlanReady(plan=text):
            return replace(task, reason=text)
        case _:
            return None


def emit_effects(was: Task, task: Task, event: e.TaskEvent, policy: Policy) -> list[Effect] | None:
    """Return the effects of a run's outcome; None for events of other topics."""
    match event:
        case e.PatchReady():
            return [StopRun(issue=task.issue, run=event.run), _push_work(was, event)]
        case e.NothingToChange(summary=summary):
            answer = Reply(
                issue=task.issue,
                topic=Topic.ANSWER,
                dedup_key=f"answer:{task.run}",
                detail=summary,
                on_pull=True,
            )
            return [StopRun(issue=task.issue, run=event.run), answer]
        case _:
            return None


def start_round(task: Task, *reviews: Review) -> Task:
    """Return the task with a new run that has these reviews as its brief."""
    return replace(
        task,
        run=task.run + 1,
        budget_grants=1,
        failure="",
        reviews=reviews,
        waiting=(),
        approved=None,
        approved_by=None,
    )


def start_next_round(task: Task, policy: Policy) -> tuple[Task, list[Effect]]:
    """Start the run that answers the reviews which came while the agent worked.

    What is being pushed is not answered yet: those reviews stay on the task.
    """
    brief = task.waiting
    task = start_round(replace(task, state=State.RUNNING), *task.reviews, *brief)
    return task, [replace(start_run(task, policy), reviews=brief)]


def resume_work(was: Task, task: Task, policy: Policy) -> list[Effect]:
    """Return the effects that let an agent work again, without what an older run has left."""
    start = start_run(task, policy)
    if task.run != was.run and was.state in HALTED:
        return [StopRun(issue=task.issue, run=was.run), start]
    return [start]


def start_run(task: Task, policy: Policy, purpose: Purpose | None = None) -> StartRun:
    """Return the effect that starts the task's current run, with the budget of the policy."""
    purpose = purpose or _choose_purpose(task)
    role = "plan" if purpose is Purpose.PLAN else "build"
    return StartRun(
        issue=task.issue,
        run=task.run,
        purpose=purpose,
        title=task.title,
        body=task.body,
        reviews=task.reviews,
        branch=task.branch,
        steps=policy.steps * task.budget_grants,
        minutes=policy.minutes * task.budget_grants,
        usd=policy.usd and policy.usd * task.budget_grants,
        model=task.model or policy.models.get(role, ""),
        failure=task.failure,
    )


def _choose_purpose(task: Task) -> Purpose:
    if task.state is State.PLANNING:
        return Purpose.PLAN
    return Purpose.REVISE if task.reviews else Purpose.BUILD


def _push_work(task: Task, event: e.PatchReady) -> Push:
    return Push(
        issue=task.issue,
        run=event.run,
        pull=task.pull,
        tree=event.tree,
        base=event.base,
        branch=task.branch,
        at=event.at,
        title=task.title,
        requester=task.requester,
        reviews=task.reviews,
        work=event.work,
    )
