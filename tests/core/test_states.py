"""The state machine: every state can be reached and left, any order of events is lawful, and the
documented diagram is the table."""

import inspect
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osiris.core import events as e
from osiris.core.decide import decide
from osiris.core.policy import Policy
from osiris.core.task import ENDED, LIVING, MOVES, Back, State, Task, render_states_page
from tests.core.events import create_request, list_events


def list_targets(state: State) -> set[State]:
    """Return the states that a move from this state leads to."""
    targets: set[State] = set()
    for (source, _), target in MOVES.items():
        if source is state:
            targets |= {State.PLANNING, State.RUNNING} if isinstance(target, Back) else {target}
    return targets


def find_reachable(start: State) -> set[State]:
    """Return the states that any number of moves from this state leads to."""
    reached = {start}
    frontier = {start}
    while frontier := set().union(*map(list_targets, frontier)) - reached:
        reached |= frontier
    return reached


def test_every_state_can_be_reached():
    assert find_reachable(State.QUEUED) == set(State)


@pytest.mark.parametrize("state", [*LIVING, State.FAILED, State.CANCELLED, State.REJECTED])
def test_from_every_state_but_done_the_work_can_still_be_done(state: State):
    assert State.DONE in find_reachable(state)


def test_merged_work_starts_again_only_by_a_new_request():
    assert {event for state, event in MOVES if state is State.DONE} == {e.TaskRequested}


def test_every_living_state_can_be_stopped_and_can_fail():
    for state in LIVING:
        assert MOVES[state, e.StopRequested] is State.CANCELLED
        assert MOVES[state, e.OrderRefused] is State.FAILED


def test_every_event_of_a_task_is_tried_by_these_tests():
    concrete = {
        cls
        for _, cls in inspect.getmembers(e, inspect.isclass)
        if issubclass(cls, e.TaskEvent) and cls not in (e.TaskEvent, e.Ask, e.RunFact)
    }
    assert {type(event) for event in list_events()} == concrete


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(list_events()) - 1), st.booleans()), max_size=40))
def test_any_order_of_events_leaves_a_lawful_task(history: list[tuple[int, bool]]):
    task: Task | None = None
    for index, is_current_run in history:
        run = task.run if task and is_current_run else 1
        event = list_events(run)[index]
        before = task
        task, effects = decide(task, event, Policy())
        if task is None:
            continue
        assert before is not None or isinstance(event, e.TaskRequested)
        if before is not None and before.state is not task.state:
            target = MOVES[before.state, type(event)]
            allowed = {before.before} if isinstance(target, Back) else {target}
            if State.REVIEW in allowed and before.waiting:
                allowed = {State.RUNNING}  # a review that waited starts the next run at once
            assert task.state in allowed
        if before is not None and before.state is State.DONE and task.state is not State.DONE:
            assert (task.generation, task.pull) == (before.generation + 1, None)
        elif before is not None and before.state is State.DONE:
            assert not any(
                type(effect).__name__ in ("StartRun", "Push", "OpenDraftPull") for effect in effects
            )
        if task.state is State.APPROVED:
            assert task.approved == task.head


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(list_events()) - 1), max_size=30))
def test_the_same_fact_of_a_run_twice_is_one(history: list[int]):
    task, _ = decide(None, create_request(), Policy())
    for index in history:
        assert task is not None
        event = list_events(task.run)[index]
        after, _ = decide(task, event, Policy())
        if isinstance(event, e.RunFact) and after != task:
            again, effects = decide(after, event, Policy())
            assert (again, effects) == (after, [])
        task = after


def test_the_picture_in_the_documents_is_the_table():
    page = Path(__file__).parents[2] / "docs/states.md"
    assert page.read_text() == render_states_page(), "run `make docs`"


def test_ended_and_living_are_all_states():
    assert set(LIVING) | ENDED == set(State)
