"""The task, and every legal move of its state: the whole state machine as one table."""

from dataclasses import dataclass
from enum import Enum, StrEnum

from osiris.core import events as e
from osiris.core.review import Review
from osiris.core.work import Work


class State(StrEnum):
    """The state of a task. Elsewhere queued is also called pending, running is in progress, and
    review is review pending."""

    QUEUED = "queued"
    PLANNING = "planning"
    PLANNED = "planned"
    ASKING = "asking"
    RUNNING = "running"
    REVIEW = "review"
    APPROVED = "approved"
    PAUSED = "paused"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"


class Back(Enum):
    """The target of a move that returns a task to its state before it was halted."""

    BACK = "back"


ENDED = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.REJECTED})
LIVING = tuple(state for state in State if state not in ENDED)
HALTED = frozenset({State.ASKING, State.PAUSED})
UNDER_REVIEW = (State.REVIEW, State.APPROVED)

MOVES: dict[tuple[State, type[e.TaskEvent]], State | Back] = {
    # work
    (State.QUEUED, e.PlanningStarted): State.PLANNING,
    (State.QUEUED, e.RunStarted): State.RUNNING,
    (State.PLANNING, e.PlanReady): State.PLANNED,
    (State.PLANNED, e.PlanApproved): State.RUNNING,
    (State.PLANNING, e.QuestionAsked): State.ASKING,
    (State.RUNNING, e.QuestionAsked): State.ASKING,
    (State.ASKING, e.Answered): Back.BACK,
    **{(state, e.PatchReady): State.REVIEW for state in (State.QUEUED, State.RUNNING)},
    **{(state, e.NothingToChange): State.REVIEW for state in (State.QUEUED, State.RUNNING)},
    # review
    (State.REVIEW, e.Approved): State.APPROVED,
    (State.APPROVED, e.ApprovalDismissed): State.REVIEW,
    (State.APPROVED, e.CommitsPushed): State.REVIEW,
    (State.APPROVED, e.PatchPushed): State.REVIEW,
    **{
        (state, e.ChangesRequested): State.RUNNING
        for state in (*UNDER_REVIEW, State.FAILED, State.PAUSED)
    },
    **{(state, e.ChecksFailed): State.RUNNING for state in UNDER_REVIEW},
    **{(state, e.Conflicted): State.RUNNING for state in UNDER_REVIEW},
    # ends
    **{(state, e.Merged): State.DONE for state in LIVING},
    **{(state, e.PullClosed): State.REJECTED for state in LIVING},
    **{(state, e.IssueDropped): State.REJECTED for state in LIVING},
    **{(state, e.StopRequested): State.CANCELLED for state in LIVING},
    **{
        (state, e.RequestWithdrawn): State.CANCELLED
        for state in LIVING
        if state not in UNDER_REVIEW
    },
    **{(state, e.OrderRefused): State.FAILED for state in LIVING},
    **{(state, e.OrderParked): State.PAUSED for state in LIVING if state not in HALTED},
    **{(state, e.AccessLost): State.PAUSED for state in LIVING if state not in HALTED},
    (State.PAUSED, e.AccessRegained): Back.BACK,
    (State.PLANNING, e.RunFailed): State.FAILED,
    (State.RUNNING, e.RunFailed): State.FAILED,
    (State.QUEUED, e.RunFailed): State.FAILED,
    (State.QUEUED, e.BudgetSpent): State.PAUSED,
    (State.PLANNING, e.BudgetSpent): State.PAUSED,
    (State.RUNNING, e.BudgetSpent): State.PAUSED,
    **{
        (state, e.RunHalted): State.PAUSED
        for state in (State.QUEUED, State.PLANNING, State.RUNNING)
    },
    # a person found another way: the pull request was merged although we had given up
    (State.FAILED, e.Merged): State.DONE,
    (State.CANCELLED, e.Merged): State.DONE,
    (State.FAILED, e.PullClosed): State.REJECTED,
    (State.CANCELLED, e.PullClosed): State.REJECTED,
    # second chances
    (State.PAUSED, e.RetryRequested): Back.BACK,
    (State.FAILED, e.RetryRequested): State.QUEUED,
    (State.CANCELLED, e.RetryRequested): State.QUEUED,
    (State.REJECTED, e.RetryRequested): State.QUEUED,
    (State.FAILED, e.TaskRequested): State.QUEUED,
    (State.CANCELLED, e.TaskRequested): State.QUEUED,
    (State.REJECTED, e.TaskRequested): State.QUEUED,
    (State.DONE, e.TaskRequested): State.QUEUED,
    (State.REJECTED, e.PullReopened): State.REVIEW,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One issue, one task, one branch, one pull request.

    `before` is the state a halted task returns to; `run` numbers the runs from 1; `budget_grants`
    is how often the current run is given its budget; `model` is what `model_by` chose, "" when
    nobody chose; `generation` counts how often work started again after a rejection or a merge;
    `reviews` is what the current run works on and `waiting` what came meanwhile; `seen_reviews`
    names the reviews that were recorded; `approved` is the commit a person approved; `read_only` is
    True while nothing can be written in the repository; `failure` is why the run before the current
    one failed, "" when it did not; `subscribers` are the conversations that
    are told what becomes of it.
    """

    issue: e.IssueRef
    title: str
    body: str
    requester: str
    state: State = State.QUEUED
    before: State = State.RUNNING
    run: int = 1
    budget_grants: int = 1
    model: str = ""
    model_by: str = ""
    generation: int = 1
    branch: str
    pull: int | None = None
    head: str | None = None
    approved: str | None = None
    approved_by: str | None = None
    reviews: tuple[Review, ...] = ()
    waiting: tuple[Review, ...] = ()
    seen_reviews: tuple[str, ...] = ()
    read_only: bool = False
    reason: str = ""
    failure: str = ""
    work: Work | None = None
    subscribers: tuple[e.Address, ...] = ()


def next_state(task: Task, event: e.TaskEvent) -> State | None:
    """Return the state that `event` leads to; None when the table does not list the move."""
    target = MOVES.get((task.state, type(event)))
    return task.before if isinstance(target, Back) else target


def render_states_page() -> str:
    """Return the table as a page with a Mermaid diagram: `docs/states.md`."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (state, event), target in MOVES.items():
        for name in (
            [back.value for back in _BACK_TO] if isinstance(target, Back) else [target.value]
        ):
            arrows.setdefault((state.value, name), []).append(event.__name__)
    drawn = [
        f"    {a} --> {b}: {', '.join(names)}" for (a, b), names in arrows.items() if b not in _ENDS
    ]
    rows = [f"| {a} | {', '.join(names)} | {b} |" for (a, b), names in arrows.items()]
    return "\n".join([*_PAGE_HEAD, *drawn, "```", "", *_TABLE_HEAD, *rows, ""])


_BACK_TO = (State.PLANNING, State.RUNNING)
_ENDS = ("failed", "cancelled", "rejected", "done")
_PAGE_HEAD = (
    "# The states of a task",
    "",
    "Drawn from `MOVES` in `osiris/core/task.py` by `make docs`; a test compares.",
    "A pair that is not listed changes nothing.",
    "The picture leaves out the moves to the four ends; the table has them all.",
    "",
    "```mermaid",
    "stateDiagram-v2",
    "    [*] --> queued: TaskRequested",
)
_TABLE_HEAD = ("| in state | when | becomes |", "|---|---|---|")
