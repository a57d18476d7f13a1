"""The whole behaviour of Osiris: (task, event, policy) -> (task, effects). No I/O, no clock, no
client."""

import re
from collections.abc import Iterator
from dataclasses import replace

from osiris.core import events as e
from osiris.core.effects import (
    Effect,
    MarkReady,
    OpenDraftPull,
    OpenIssue,
    Purpose,
    Push,
    React,
    Reply,
    Report,
    StartRun,
    StopRun,
    SwitchModel,
    TakeUp,
    Topic,
)
from osiris.core.policy import Policy
from osiris.core.task import ENDED, HALTED, State, Task, next_state

Decision = tuple[Task | None, list[Effect]]

_AT_WORK = (State.QUEUED, State.PLANNING, State.RUNNING)


def decide(task: Task | None, event: e.Event, policy: Policy) -> Decision:
    """Apply one event. What the table does not list changes nothing: deliveries come late, twice
    and out of order."""
    if isinstance(event, e.RequestMade):
        return task, [
            OpenIssue(
                key=event.key, repo=event.repo, title=event.title, body=event.body, by=event.by
            )
        ]
    if isinstance(event, e.Ask) and not event.actor.may_steer:
        return task, _refuse_outsider(event)
    if policy.broken and isinstance(event, e.TaskRequested | e.RetryRequested | e.ChangesRequested):
        return task, [_report_broken_policy(event, policy)]
    if task is None:
        return _decide_without_task(event, policy)
    if (isinstance(event, e.RunFact) and event.run != task.run) or _is_duplicate_review(
        task, event
    ):
        return task, []
    task, event = _record_review(task, event), _convert_to_refusal(task, event)
    if (target := _find_target(task, event)) is None:
        return _decide_without_move(task, event)
    return _apply_move(task, target, event, policy)


# ── what does not move a task ─────────────────────────────────────────────────────────────────────


def _refuse_outsider(event: e.Ask) -> list[Effect]:
    """An outsider's wish: one polite refusal on the issue, ever. An approval asks nothing of us."""
    if isinstance(event, e.Approved):
        return []
    return [
        Reply(
            issue=event.issue,
            topic=Topic.REFUSED,
            once=f"refused:{event.actor.login}",
            to=event.actor.login,
        )
    ]


def _report_broken_policy(event: e.Ask, policy: Policy) -> Reply:
    return Reply(
        issue=event.issue, topic=Topic.BROKEN, once=f"broken:{policy.broken}", detail=policy.broken
    )


def _is_duplicate_review(task: Task, event: e.TaskEvent) -> bool:
    """A review may be told twice: by its delivery, and by who looks what was missed."""
    return (
        isinstance(event, e.ChangesRequested)
        and event.said is not None
        and event.said.id in task.heard
    )


def _record_review(task: Task, event: e.TaskEvent) -> Task:
    if isinstance(event, e.ChangesRequested) and event.said:
        return replace(task, heard=(*task.heard, event.said.id))
    return task


def _convert_to_refusal(task: Task, event: e.TaskEvent) -> e.TaskEvent:
    """Work that could not be pushed is not taken up once the next run has begun without it: that
    run starts again."""
    if isinstance(event, e.OrderParked) and event.run not in (None, task.run):
        return e.OrderRefused(issue=event.issue, reason=event.reason)
    return event


def _decide_without_task(event: e.TaskEvent, policy: Policy) -> Decision:
    match event:
        case e.TaskRequested():
            branch = branch_name(event.issue.number, event.title, 1)
            task = Task(
                issue=event.issue,
                title=event.title,
                body=event.body,
                requester=event.actor.login,
                branch=branch,
            )
            return task, [_start_run(task, policy), *_react_to_ask(event), Report(issue=task.issue)]
        case (
            e.HelpAsked()
            | e.StatusAsked()
            | e.StopRequested()
            | e.RetryRequested()
            | e.ModelChosen()
        ):
            return None, [_reply_help(event)]
        case _:
            return None, []


def _decide_without_move(task: Task, event: e.TaskEvent) -> Decision:
    """The state stays; some facts are kept all the same, and a person who wrote a command gets an
    answer."""
    match event:
        case e.PullOpened(number=number) if number != task.pull:
            return replace(task, pull=number), [Report(issue=task.issue)]
        case e.PatchPushed():
            task = _record_push(task, event)
            return task, [*_open_missing_pull(task), Report(issue=task.issue)]
        case e.CommitsPushed(head=head) if head != task.head:
            return replace(task, head=head), [Report(issue=task.issue)]
        case e.ChangesRequested(review=review) if task.state is not State.DONE:
            return replace(task, waiting=(*task.waiting, review)), _react_to_ask(event)
        case e.HelpAsked():
            return task, [_reply_help(event)]
        case e.ModelChosen() if task.state is not State.DONE:
            return _choose_model(task, event)
        case e.TaskRequested(said=None) if task.state is State.DONE:
            return task, [Reply(issue=task.issue, topic=Topic.STATUS, once="status:done")]
        case e.Ask(said=e.Said(kind="comment", id=id)):
            return task, [
                *_retry_parked(event),
                Reply(issue=task.issue, topic=Topic.STATUS, once=f"status:{id}"),
            ]
        case e.RetryRequested():
            return task, _retry_parked(event)
        case _:
            return task, []


def _retry_parked(event: e.TaskEvent) -> list[Effect]:
    """A retry takes up what was parked, also where it moves nothing; a new run begins without
    it."""
    return (
        [TakeUp(issue=event.issue)]
        if isinstance(event, e.RetryRequested | e.AccessRegained)
        else []
    )


def _choose_model(task: Task, event: e.ModelChosen) -> Decision:
    """A run under way takes the model over at its next step; a task at rest remembers it for its
    next run."""
    if event.trouble:
        once = f"model:{event.said.id if event.said else event.model}"
        return task, [Reply(issue=task.issue, topic=Topic.MODEL, once=once, detail=event.trouble)]
    task = replace(task, model=event.model, model_by=event.actor.login)
    at_work = task.state in _AT_WORK
    switch = [SwitchModel(issue=task.issue, run=task.run, model=task.model)] if at_work else []
    return task, [*switch, *_react_to_ask(event), Report(issue=task.issue)]


def _reply_help(event: e.Ask) -> Effect:
    once = event.said.id if event.said else event.actor.login
    detail = event.unknown if isinstance(event, e.HelpAsked) else ""
    return Reply(issue=event.issue, topic=Topic.HELP, once=f"help:{once}", detail=detail)


# ── what moves it ─────────────────────────────────────────────────────────────────────────────────


def _find_target(task: Task, event: e.TaskEvent) -> State | None:
    """The table's move, unless what was said is about a commit that is not, or no longer, the one
    under review."""
    match event:
        case e.Approved(commit=commit, head=head):
            void = commit != head
        case e.ChecksFailed(head=head) | e.Conflicted(head=head):
            void = head != task.head
        case e.CommitsPushed(head=head) | e.PatchPushed(head=head):
            void = head == task.approved  # it was approved before we were told that it was pushed
        case e.AccessRegained():
            void = not task.barred  # it is paused for another reason
        case _:
            void = False
    return None if void else next_state(task, event)


def _apply_move(task: Task, target: State, event: e.TaskEvent, policy: Policy) -> Decision:
    halted_in = task.state if target in HALTED else task.before
    barred = isinstance(event, e.AccessLost)
    moved = _record_facts(
        task, replace(task, state=target, before=halted_in, reason="", barred=barred), event
    )
    orders = [*_emit_effects(task, moved, event, policy), *_react_to_ask(event)]
    if moved.run == task.run:
        orders += _retry_parked(event)
    if not barred:
        orders.append(Report(issue=task.issue))
    if moved.state is State.REVIEW and moved.waiting:
        moved, more = _start_next_round(moved, policy)
        orders += more
    return moved, orders


def _record_facts(was: Task, task: Task, event: e.TaskEvent) -> Task:
    """The facts an event leaves on the task beside the new state."""
    match event:
        case e.PatchReady(work=work):
            return replace(task, work=work, approved=None, approved_by=None)
        case e.NothingToChange():
            return replace(task, reviews=())
        case e.Approved(commit=commit, pull=pull, actor=actor):
            return replace(task, approved=commit, approved_by=actor.login, head=commit, pull=pull)
        case e.CommitsPushed(head=head):
            return replace(task, head=head, approved=None, approved_by=None)
        case e.PatchPushed():
            return replace(_record_push(task, event), approved=None, approved_by=None)
        case e.ApprovalDismissed():
            return replace(task, approved=None, approved_by=None)
        case e.ChangesRequested(review=review):
            return _start_round(task, *task.reviews, *task.waiting, review)
        case e.Answered(text=text, actor=actor):
            return _start_round(task, *task.reviews, e.Review(by=actor.login, text=text))
        case e.ChecksFailed(summary=summary):
            return _start_round(task, e.Review(by="the checks", text=summary))
        case e.Conflicted() | e.PlanApproved():
            return _start_round(task, *task.reviews)
        case e.BudgetSpent(reason=reason):
            return replace(task, grants=task.grants + 1, reason=reason)
        case e.RetryRequested() if was.state is State.PAUSED:
            return task
        case e.RetryRequested():
            return _restart_task(was, task)
        case e.TaskRequested(title=title, body=body):
            return _restart_task(was, replace(task, title=title, body=body))
        case _:
            return replace(task, reason=_describe_reason(event))


def _record_push(task: Task, event: e.PatchPushed) -> Task:
    """Only what was pushed is answered: a refused push leaves its reviews to the next run."""
    rest = tuple(review for review in task.reviews if review not in event.answered)
    return replace(task, head=event.head, reviews=rest)


def _open_missing_pull(task: Task) -> list[Effect]:
    """The pull request is opened once the work is on GitHub, and only then."""
    if task.pull is not None or task.work is None or task.state in ENDED:
        return []
    return [_open_pull(task, task.work)]


def _describe_reason(event: e.TaskEvent) -> str:
    """Why the task is where it is, as half a sentence."""
    match event:
        case e.RunFailed(reason=text) | e.RunHalted(reason=text):
            return text
        case e.OrderRefused(reason=text) | e.OrderParked(reason=text) | e.AccessLost(reason=text):
            return text
        case e.QuestionAsked(question=text) | e.PlanReady(plan=text):
            return text
        case e.StopRequested(actor=actor):
            return f"{actor.login} stopped it"
        case e.RequestWithdrawn(by=by):
            return f"{by} withdrew the request"
        case e.PullClosed(by=by):
            return f"{by} closed the pull request without merging it"
        case e.IssueDropped(by=by):
            return f"{by} closed the issue as not planned"
        case _:
            return ""


def _start_round(task: Task, *reviews: e.Review) -> Task:
    """A new run, with these reviews as its brief."""
    return replace(
        task,
        run=task.run + 1,
        grants=1,
        reviews=reviews,
        waiting=(),
        approved=None,
        approved_by=None,
    )


def _restart_task(was: Task, task: Task) -> Task:
    """A second chance: on the same branch, or after a rejection on a new one, so that nothing is
    ever forced."""
    if was.state is not State.REJECTED:
        return _start_round(task, *task.reviews, *task.waiting)
    branch = branch_name(task.issue.number, task.title, task.generation + 1)
    anew = replace(
        task, generation=task.generation + 1, branch=branch, pull=None, head=None, work=None
    )
    return _start_round(anew)


def _emit_effects(was: Task, task: Task, event: e.TaskEvent, policy: Policy) -> Iterator[Effect]:
    match event:
        case e.PatchReady():
            yield StopRun(issue=task.issue, run=event.run)
            yield _push_work(was, event)
        case e.PatchPushed():
            yield from _open_missing_pull(task)
        case e.NothingToChange(summary=summary):
            yield StopRun(issue=task.issue, run=event.run)
            yield Reply(
                issue=task.issue,
                topic=Topic.ANSWER,
                once=f"answer:{task.run}",
                detail=summary,
                on_pull=True,
            )
        case e.Approved(pull=pull, commit=commit):
            yield MarkReady(issue=task.issue, pull=pull, commit=commit)
        case e.ChecksFailed():
            yield _start_run(task, policy, Purpose.FIX_CHECKS)
        case e.Conflicted():
            yield _start_run(task, policy, Purpose.RESOLVE_CONFLICT)
        case e.AccessLost() | e.OrderParked() if was.state in _AT_WORK:
            yield StopRun(issue=task.issue, run=task.run, keep=True)
        case e.Ask() | e.AccessRegained() if task.state in _AT_WORK:
            if task.run != was.run and was.state in HALTED:
                yield StopRun(issue=task.issue, run=was.run)
            yield _start_run(task, policy)
        case _ if task.state in ENDED and was.state not in ENDED:
            yield StopRun(issue=task.issue, run=task.run)


def _start_next_round(task: Task, policy: Policy) -> tuple[Task, list[Effect]]:
    """A review came while the agent worked: it is the next run's brief. What is being pushed is not
    answered yet."""
    task = _start_round(replace(task, state=State.RUNNING), *task.reviews, *(brief := task.waiting))
    return task, [replace(_start_run(task, policy), reviews=brief)]


def _start_run(task: Task, policy: Policy, purpose: Purpose | None = None) -> StartRun:
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
        steps=policy.steps * task.grants,
        minutes=policy.minutes * task.grants,
        usd=policy.usd and policy.usd * task.grants,
        model=task.model or policy.models.get(role, ""),
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


def _open_pull(task: Task, work: e.Work) -> OpenDraftPull:
    return OpenDraftPull(
        issue=task.issue,
        branch=task.branch,
        title=task.title,
        request=task.body,
        requester=task.requester,
        work=work,
    )


def _react_to_ask(event: e.TaskEvent) -> list[Effect]:
    if isinstance(event, e.Ask) and event.said and not isinstance(event, e.Approved):
        return [React(issue=event.issue, said=event.said)]
    return []


def branch_name(number: int, title: str, generation: int) -> str:
    """`osiris/<issue>-<slug>`; a later generation has its number behind it, so no branch is ever
    forced."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-") or "task"
    return f"osiris/{number}-{slug}" + (f"-{generation}" if generation > 1 else "")
