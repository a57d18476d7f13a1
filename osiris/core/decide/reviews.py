"""The pull request: pushes, reviews, approvals, checks and conflicts."""

from dataclasses import replace

from osiris.core import events as e
from osiris.core.decide.commands import react_to_ask
from osiris.core.decide.runs import start_round, start_run
from osiris.core.effects import Effect, MarkReady, OpenDraftPull, Purpose, Report
from osiris.core.policy import Policy
from osiris.core.review import Review
from osiris.core.task import ENDED, State, Task


def is_duplicate(task: Task, event: e.TaskEvent) -> bool:
    """Return whether a review was recorded before: its delivery and the reconciler both report
    it."""
    if not isinstance(event, e.ChangesRequested) or event.said is None:
        return False
    return event.said.id in task.seen_reviews


def record_source(task: Task, event: e.TaskEvent) -> Task:
    """Return the task with a review noted as recorded."""
    if isinstance(event, e.ChangesRequested) and event.said:
        return replace(task, seen_reviews=(*task.seen_reviews, event.said.id))
    return task


def is_void(task: Task, event: e.TaskEvent) -> bool:
    """Return whether an event is about a commit that is not, or no longer, the one under review."""
    match event:
        case e.Approved(commit=commit, head=head):
            return commit != head
        case e.ChecksFailed(head=head) | e.Conflicted(head=head):
            return head != task.head
        case e.CommitsPushed(head=head) | e.PatchPushed(head=head):
            return head == task.approved  # approved before its push was reported
        case _:
            return False


def record_facts(was: Task, task: Task, event: e.TaskEvent) -> Task | None:
    """Return the task with the facts of its pull request; None for events of other topics."""
    match event:
        case e.Approved(commit=commit, pull=pull, actor=actor):
            return replace(task, approved=commit, approved_by=actor.login, head=commit, pull=pull)
        case e.CommitsPushed(head=head):
            return replace(task, head=head, approved=None, approved_by=None)
        case e.PatchPushed():
            return replace(_record_push(task, event), approved=None, approved_by=None)
        case e.ApprovalDismissed():
            return replace(task, approved=None, approved_by=None)
        case e.ChangesRequested(review=review):
            return start_round(task, *task.reviews, *task.waiting, review)
        case e.ChecksFailed(summary=summary):
            return start_round(task, Review(by="the checks", text=summary))
        case e.Conflicted():
            return start_round(task, *task.reviews)
        case e.PullClosed(by=by):
            return replace(task, reason=f"{by} closed the pull request without merging it")
        case _:
            return None


def emit_effects(was: Task, task: Task, event: e.TaskEvent, policy: Policy) -> list[Effect] | None:
    """Return the effects of what happened to the pull request; None for events of other topics."""
    match event:
        case e.PatchPushed():
            return _open_missing_pull(task)
        case e.Approved(pull=pull, commit=commit):
            return [MarkReady(issue=task.issue, pull=pull, commit=commit)]
        case e.ChecksFailed():
            return [start_run(task, policy, Purpose.FIX_CHECKS)]
        case e.Conflicted():
            return [start_run(task, policy, Purpose.RESOLVE_CONFLICT)]
        case _:
            return None


def decide_without_move(task: Task, event: e.TaskEvent) -> tuple[Task, list[Effect]] | None:
    """Return what an event changes although the state stays; None for events of other topics."""
    match event:
        case e.PullOpened(number=number) if number != task.pull:
            return replace(task, pull=number), [Report(issue=task.issue)]
        case e.PatchPushed():
            task = _record_push(task, event)
            return task, [*_open_missing_pull(task), Report(issue=task.issue)]
        case e.CommitsPushed(head=head) if head != task.head:
            return replace(task, head=head), [Report(issue=task.issue)]
        case e.ChangesRequested(review=review) if task.state is not State.DONE:
            return replace(task, waiting=(*task.waiting, review)), react_to_ask(event)
        case _:
            return None


def _record_push(task: Task, event: e.PatchPushed) -> Task:
    """Return the task with its new head. Only what was pushed is answered: the reviews of a refused
    push stay for the next run."""
    rest = tuple(review for review in task.reviews if review not in event.answered)
    return replace(task, head=event.head, reviews=rest)


def _open_missing_pull(task: Task) -> list[Effect]:
    """Return the effect that opens the pull request, once the work is on GitHub and not before."""
    if task.pull is not None or task.work is None or task.state in ENDED:
        return []
    return [
        OpenDraftPull(
            issue=task.issue,
            branch=task.branch,
            title=task.title,
            request=task.body,
            requester=task.requester,
            work=task.work,
        )
    ]
