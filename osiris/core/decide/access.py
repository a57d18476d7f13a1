"""Access: who may ask, what the repository's policy allows, and what cannot be written for now."""

from dataclasses import replace

from osiris.core import events as e
from osiris.core.decide.conversations import report_not_started
from osiris.core.decide.runs import AT_WORK, resume_work
from osiris.core.effects import Effect, Reply, RequeueParked, StopRun, Topic
from osiris.core.policy import Policy
from osiris.core.task import Task


def refuse(event: e.Ask, policy: Policy) -> list[Effect] | None:
    """Return the effects of a refusal; None when the person may ask and the policy can be read."""
    if not event.actor.may_steer:
        return _refuse_outsider(event)
    starts = isinstance(event, e.TaskRequested | e.RetryRequested | e.ChangesRequested)
    if policy.broken and starts:
        reply = Reply(
            issue=event.issue,
            topic=Topic.BROKEN,
            dedup_key=f"broken:{event.said.id if event.said else policy.broken}",
            detail=policy.broken,
            on_pull=isinstance(event, e.ChangesRequested),
        )
        if isinstance(event, e.TaskRequested):
            return [reply, *report_not_started(event, policy.broken)]
        return [reply]
    return None


def _refuse_outsider(event: e.Ask) -> list[Effect]:
    """Return one polite refusal for each person and issue. An approval asks nothing of Osiris."""
    if isinstance(event, e.Approved):
        return []
    login = event.actor.login
    once = f"refused:{login}"
    return [Reply(issue=event.issue, topic=Topic.REFUSED, dedup_key=once, to=login)]


def convert_to_refusal(task: Task, event: e.TaskEvent) -> e.TaskEvent:
    """Return a refusal for work that was parked while the next run began without it: that run
    starts again."""
    if isinstance(event, e.OrderParked) and event.run not in (None, task.run):
        return e.OrderRefused(issue=event.issue, reason=event.reason)
    return event


def is_void(task: Task, event: e.TaskEvent) -> bool:
    """Return whether access came back to a task that is paused for another reason."""
    return isinstance(event, e.AccessRegained) and not task.read_only


def record_facts(was: Task, task: Task, event: e.TaskEvent) -> Task | None:
    """Return the task with the reason why it stopped; None for events of other topics."""
    match event:
        case e.OrderRefused(reason=text) | e.OrderParked(reason=text) | e.AccessLost(reason=text):
            return replace(task, reason=text)
        case _:
            return None


def emit_effects(was: Task, task: Task, event: e.TaskEvent, policy: Policy) -> list[Effect] | None:
    """Return the effects that pause or resume the work; None for other events."""
    match event:
        case e.AccessLost() | e.OrderParked() if was.state in AT_WORK:
            return [StopRun(issue=task.issue, run=task.run, keep=True)]
        case e.Ask() | e.AccessRegained() if task.state in AT_WORK:
            return resume_work(was, task, policy)
        case _:
            return None


def requeue_parked(event: e.TaskEvent) -> list[Effect]:
    """Return the effect that requeues parked orders: a retry does so also where it moves nothing,
    and a new run begins without them."""
    if isinstance(event, e.RetryRequested | e.AccessRegained):
        return [RequeueParked(issue=event.issue)]
    return []
