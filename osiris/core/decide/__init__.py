"""The behaviour of Osiris as one pure function: (task, event, policy) -> (task, effects).

Each topic has a module: requests, runs, reviews, access, commands. For the events it knows, a topic
records facts on the task, emits effects, and decides where the state does not move; for all others
it returns None. Conversations outside of GitHub have a function of their own,
`conversations.decide_conversation`.
"""

from dataclasses import replace

from osiris.core import events as e
from osiris.core.decide import access, commands, conversations, requests, reviews, runs
from osiris.core.effects import Effect, Report, StopRun
from osiris.core.policy import Policy
from osiris.core.task import ENDED, HALTED, State, Task, next_state

Decision = tuple[Task | None, list[Effect]]

_RECORDERS = (
    requests.record_facts,
    runs.record_facts,
    reviews.record_facts,
    access.record_facts,
    commands.record_facts,
)
_EMITTERS = (runs.emit_effects, reviews.emit_effects, access.emit_effects)
_WITHOUT_MOVE = (reviews.decide_without_move, commands.decide_without_move)


def decide(task: Task | None, event: e.TaskEvent, policy: Policy) -> Decision:
    """Return the task after `event`, and the effects to perform.

    `task` is None while the issue has none. A pair of state and event that `MOVES` does not list
    moves nothing: deliveries come late, twice and out of order.
    """
    decided, effects = _decide_task(task, event, policy)
    if decided is not None:
        effects = [*effects, *conversations.notify_subscribers(task, decided)]
    return decided, effects


def _decide_task(task: Task | None, event: e.TaskEvent, policy: Policy) -> Decision:
    if isinstance(event, e.Ask) and (refusal := access.refuse(event, policy)) is not None:
        return task, refusal
    if task is None:
        return _decide_without_task(event, policy)
    if isinstance(event, e.RunFact) and event.run != task.run:
        return task, []
    if reviews.is_duplicate(task, event):
        return task, []
    task = reviews.record_source(task, event)
    event = access.convert_to_refusal(task, event)
    is_void = reviews.is_void(task, event) or access.is_void(task, event)
    target = None if is_void else next_state(task, event)
    if target is None:
        return _decide_without_move(task, event)
    return _apply_move(task, target, event, policy)


def _decide_without_task(event: e.TaskEvent, policy: Policy) -> Decision:
    if not isinstance(event, e.TaskRequested):
        return None, commands.reply_without_task(event)
    task = requests.create_task(event)
    start = runs.start_run(task, policy)
    return task, [start, *commands.react_to_ask(event), Report(issue=task.issue)]


def _decide_without_move(task: Task, event: e.TaskEvent) -> Decision:
    """Keep the state. Some facts are recorded all the same, and a command is answered."""
    for answer in _WITHOUT_MOVE:
        if (decision := answer(task, event)) is not None:
            return decision
    return task, []


def _apply_move(task: Task, target: State, event: e.TaskEvent, policy: Policy) -> Decision:
    moved = replace(
        task,
        state=target,
        before=task.state if target in HALTED else task.before,
        reason="",
        read_only=isinstance(event, e.AccessLost),
    )
    moved = _record_facts(task, moved, event)
    effects = [*_emit_effects(task, moved, event, policy), *commands.react_to_ask(event)]
    if moved.run == task.run:
        effects += access.requeue_parked(event)
    if not moved.read_only:
        effects.append(Report(issue=task.issue))
    if moved.state is State.REVIEW and moved.waiting:
        moved, more = runs.start_next_round(moved, policy)
        effects += more
    return moved, effects


def _record_facts(was: Task, task: Task, event: e.TaskEvent) -> Task:
    """Return the task with what an event leaves on it beside the new state."""
    for record in _RECORDERS:
        if (recorded := record(was, task, event)) is not None:
            return recorded
    return task


def _emit_effects(was: Task, task: Task, event: e.TaskEvent, policy: Policy) -> list[Effect]:
    for emit in _EMITTERS:
        if (effects := emit(was, task, event, policy)) is not None:
            return effects
    if task.state in ENDED and was.state not in ENDED:
        return [StopRun(issue=task.issue, run=task.run)]
    return []
