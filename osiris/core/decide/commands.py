"""Commands of people: stop, retry, status, help, and the choice of a model."""

from dataclasses import replace

from osiris.core import events as e
from osiris.core.decide.access import requeue_parked
from osiris.core.decide.requests import restart_task, update_request
from osiris.core.decide.runs import AT_WORK
from osiris.core.effects import Effect, React, Reply, Report, SwitchModel, Topic
from osiris.core.task import State, Task

_NEED_A_TASK = e.HelpAsked | e.StatusAsked | e.StopRequested | e.RetryRequested | e.ModelChosen


def record_facts(was: Task, task: Task, event: e.TaskEvent) -> Task | None:
    """Return the task with the facts of a command; None for events of other topics."""
    match event:
        case e.RetryRequested():
            task = update_request(task, event)
            return task if was.state is State.PAUSED else restart_task(was, task)
        case e.StopRequested(actor=actor):
            return replace(task, reason=f"{actor.login} stopped it")
        case _:
            return None


def decide_without_move(task: Task, event: e.TaskEvent) -> tuple[Task, list[Effect]] | None:
    """Return the answer to a command that moves nothing; None for events of other topics."""
    match event:
        case e.HelpAsked():
            return task, [_reply_help(event)]
        case e.ModelChosen() if task.state is not State.DONE:
            return _choose_model(task, event)
        case e.PlainComment() if task.state is not State.DONE:
            return task, [_explain_commands(task, event)]
        case e.Ask(said=e.SourceRef(kind="comment", id=id)):
            status = Reply(issue=task.issue, topic=Topic.STATUS, dedup_key=f"status:{id}")
            return task, [*requeue_parked(event), status]
        case e.RetryRequested():
            return task, requeue_parked(event)
        case _:
            return None


def reply_without_task(event: e.TaskEvent) -> list[Effect]:
    """Return the answer to a command about an issue that has no task."""
    return [_reply_help(event)] if isinstance(event, _NEED_A_TASK) else []


def react_to_ask(event: e.TaskEvent) -> list[Effect]:
    """Return the reaction that shows a person that their words were read."""
    if isinstance(event, e.Ask) and event.said and not isinstance(event, e.Approved):
        return [React(issue=event.issue, said=event.said)]
    return []


def _choose_model(task: Task, event: e.ModelChosen) -> tuple[Task, list[Effect]]:
    """A run under way changes the model at its next step; a task at rest keeps it for its next
    run."""
    if event.trouble:
        once = f"model:{event.said.id if event.said else event.model}"
        return task, [
            Reply(issue=task.issue, topic=Topic.MODEL, dedup_key=once, detail=event.trouble)
        ]
    task = replace(task, model=event.model, model_by=event.actor.login)
    report = Report(issue=task.issue)
    if task.state not in AT_WORK:
        return task, [*react_to_ask(event), report]
    switch = SwitchModel(issue=task.issue, run=task.run, model=task.model)
    return task, [switch, *react_to_ask(event), report]


def _explain_commands(task: Task, event: e.PlainComment) -> Effect:
    """Return the answer to words that start nothing. A task gives it once on the issue and once on
    its pull request, so that people who talk with one another are left alone."""
    place = "pull" if event.on_pull else "issue"
    once = f"plain_comment:{place}:{task.generation}"
    return Reply(issue=task.issue, topic=Topic.PLAIN_COMMENT, dedup_key=once, on_pull=event.on_pull)


def _reply_help(event: e.Ask) -> Effect:
    once = event.said.id if event.said else event.actor.login
    detail = event.unknown if isinstance(event, e.HelpAsked) else ""
    return Reply(issue=event.issue, topic=Topic.HELP, dedup_key=f"help:{once}", detail=detail)
