"""The lanes of the outbox, and the queries for the orders that a worker may take.

A worker runs them many times a second, so each statement is built once, with parameters: `now`,
`lease` (the worker's), `without` (orders that it already has), `limit`, and `most` (concurrent runs
in one repository).
"""

import functools
from typing import Any

from sqlalchemy import ColumnElement, Integer, Select, and_, bindparam, exists, func, or_, select

from osiris.core.effects import Effect, React, Report, StartRun, StopRun, SwitchModel
from osiris.queue.leases import held_by_another, is_claimable
from osiris.queue.tables import LeaseRow, OutboxRow, TaskRow, is_due

WRITES, RUNS, REACTIONS, STOPS, REPORTS = range(5)
"""Lanes of the outbox. Only a write blocks later orders (a report also blocks the next report); a
reaction and a stop wait for nothing.
"""

_LANES = {StartRun: RUNS, React: REACTIONS, StopRun: STOPS, SwitchModel: STOPS, Report: REPORTS}
# seconds that an order waits for the worker that ran its task last, whose machine has the files
_LOCALITY_WAIT = 1.0

_ORDERS: Any = OutboxRow.__table__
_TASKS: Any = TaskRow.__table__
_order = _ORDERS.c
_task = _TASKS.c
_other = _ORDERS.alias("other").c
_living = select(LeaseRow.number)
_lease: ColumnElement[Any] = bindparam("lease")


def lane_of(order: Effect) -> int:
    return _LANES.get(type(order), WRITES)


DUE_LANES = (
    select(_order.lane)
    .where(is_due(_order), _order.id.not_in(bindparam("without", expanding=True)))
    .distinct()
)
"""The lanes that have a due order, whether or not a worker may take it."""


@functools.cache
def select_due(lanes: tuple[int, ...], *, counted: bool) -> Select[int, int, str]:
    """Return a query for the id, lane and repository of the orders of `lanes` that a worker may
    take now, oldest first.

    With `counted`, it excludes runs in a repository that already has `most` of them.
    """
    query = (
        select(_order.id, _order.lane, _task.repo)
        .select_from(_ORDERS.outerjoin(_TASKS, _task.id == _order.task_id))
        .where(
            is_due(_order),
            _order.lane.in_(lanes),
            _order.id.not_in(bindparam("without", expanding=True)),
        )
        .where(
            is_claimable(_order.lease, _lease),
            _prefers_this_worker(),
            ~_is_blocked(),
            _no_other_run(lanes),
        )
        .order_by(_order.id)
        .limit(bindparam("limit", type_=Integer))
    )
    return (
        query.where(_count_repository_runs() < bindparam("most", type_=Integer))
        if counted
        else query
    )


@functools.cache
def select_claimable(lanes: tuple[int, ...], *, counted: bool) -> Select[int, int, str]:
    """Return the query of `select_due` that locks its rows until the end of the transaction and
    skips those that another worker is claiming."""
    return select_due(lanes, counted=counted).with_for_update(of=_ORDERS, skip_locked=True)


def _prefers_this_worker() -> ColumnElement[bool]:
    """Return whether the order should be done on this machine: on another one, its work would have
    to be fetched first."""
    return or_(
        is_claimable(_task.lease, _lease), _order.not_before <= bindparam("now") - _LOCALITY_WAIT
    )


def _is_blocked() -> ColumnElement[bool]:
    """Return whether an earlier order for the same issue must be done first."""
    same = exists().where(
        _other.about == _order.about,
        _other.id < _order.id,
        _other.not_before.is_not(None),
        or_(_other.lane == WRITES, (_other.lane == REPORTS) & (_order.lane == REPORTS)),
    )
    return and_(_order.lane.in_((WRITES, RUNS, REPORTS)), same)


def _no_other_run(lanes: tuple[int, ...]) -> ColumnElement[bool]:
    """Return whether no other run of the task prevents this order.

    A task has one run at a time, and only the worker that runs it can stop it. Of two runs that
    could begin, the first one does. A deferred run blocks nothing, because a person who wants
    another attempt need not wait for it.
    """
    first = and_(_order.lane == RUNS, _other.id < _order.id, is_due(_other))
    elsewhere = exists().where(
        _other.task_id == _order.task_id,
        _other.id != _order.id,
        _other.lane == RUNS,
        _other.not_before.is_not(None),
        or_(_other.lease.in_(_living), first)
        if RUNS in lanes
        else held_by_another(_other.lease, _lease),
    )
    return or_(_order.lane.not_in((RUNS, STOPS)), ~elsewhere)


def _count_repository_runs() -> Any:
    task = _TASKS.alias("beside")
    return (
        select(func.count())
        .select_from(_other.id.table.join(task, task.c.id == _other.task_id))
        .where(_other.lane == RUNS, _other.not_before.is_not(None), task.c.repo == _task.repo)
        .where(_other.lease.in_(_living))
        .correlate(_TASKS)
        .scalar_subquery()
    )
