"""The state machine: reachable, never a dead end, lawful under any order of events, and drawn as it
is."""

import inspect
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osiris.core import events as e
from osiris.core.decide import decide
from osiris.core.policy import Policy
from osiris.core.task import ENDED, LIVING, MOVES, Back, State, Task, render_states_page
from tests.core.events import one_of_each, requested


def targets(state: State) -> set[State]:
    found: set[State] = set()
    for (source, _), target in MOVES.items():
        if source is state:
            found |= {State.PLANNING, State.RUNNING} if isinstance(target, Back) else {target}
    return found


def reachable(start: State) -> set[State]:
    seen = {start}
    frontier = {start}
    while frontier := set().union(*map(targets, frontier)) - seen:
        seen |= frontier
    return seen


def test_every_state_can_be_reached():
    assert reachable(State.QUEUED) == set(State)


@pytest.mark.parametrize("state", [*LIVING, State.FAILED, State.CANCELLED, State.REJECTED])
def test_from_every_state_but_done_the_work_can_still_be_done(state: State):
    assert State.DONE in reachable(state)


def test_done_is_final():
    assert targets(State.DONE) == set()


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
    assert {type(event) for event in one_of_each()} == concrete


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(one_of_each()) - 1), st.booleans()), max_size=40))
def test_any_order_of_events_leaves_a_lawful_task(history: list[tuple[int, bool]]):
    task: Task | None = None
    for index, current in history:
        run = task.run if task and current else 1
        event = one_of_each(run)[index]
        before = task
        task, orders = decide(task, event, Policy())
        if task is None:
            continue
        assert before is not None or isinstance(event, e.TaskRequested)
        if before is not None and before.state is not task.state:
            target = MOVES[before.state, type(event)]
            allowed = {before.before} if isinstance(target, Back) else {target}
            if State.REVIEW in allowed and before.waiting:
                allowed = {State.RUNNING}  # a review that waited starts the next run at once
            assert task.state in allowed
        if before is not None and before.state is State.DONE:
            assert task.state is State.DONE
            assert not any(
                type(order).__name__ in ("StartRun", "Push", "OpenDraftPull") for order in orders
            )
        if task.state is State.APPROVED:
            assert task.approved == task.head


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, len(one_of_each()) - 1), max_size=30))
def test_the_same_fact_of_a_run_twice_is_one(history: list[int]):
    task, _ = decide(None, requested(), Policy())
    for index in history:
        assert task is not None
        event = one_of_each(task.run)[index]
        after, _ = decide(task, event, Policy())
        if isinstance(event, e.RunFact) and after != task:
            again, orders = decide(after, event, Policy())
            assert (again, orders) == (after, [])
        task = after


def test_the_picture_in_the_documents_is_the_table():
    page = Path(__file__).parents[2] / "docs/states.md"
    assert page.read_text() == render_states_page(), "run `make docs`"


def test_ended_and_living_are_all_states():
    assert set(LIVING) | ENDED == set(State)
