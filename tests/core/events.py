"""Examples of events, one of each kind, for tests."""

from osiris.core import events as e
from osiris.core.review import Review
from osiris.core.work import CommandRan, FileChange, Work

ISSUE = e.IssueRef("acme/shop", 7)
OWNER = e.Actor("alice", e.Role.MAINTAIN)
OUTSIDER = e.Actor("mallory", e.Role.READ)
SOURCE = e.SourceRef("comment", "42")
WORK = Work(
    summary="Done.",
    files=(FileChange(path="a.py", status="modified", additions=1, deletions=1),),
    commands=(CommandRan(command="pytest", exit_code=0, seconds=1.0),),
    instructions=(),
    model="scripted:x",
    steps=3,
    seconds=2.0,
)
REVIEW = Review(by="bob", text="A test, please.")


def create_ask(
    kind: type[e.Ask], actor: e.Actor = OWNER, said: e.SourceRef | None = None, **fields: object
) -> e.Ask:
    return kind(issue=ISSUE, actor=actor, said=said, **fields)


def create_request(actor: e.Actor = OWNER, said: e.SourceRef | None = None) -> e.Ask:
    return create_ask(e.TaskRequested, actor, said, title="Fix the cart!", body="It loses items.")


def create_patch_ready(run: int = 1) -> e.PatchReady:
    return e.PatchReady(
        issue=ISSUE, run=run, tree="t" * 40, base="b" * 40, at=1_700_000_000, work=WORK
    )


def create_approval(commit: str = "h1", head: str = "h1") -> e.Ask:
    return create_ask(e.Approved, commit=commit, head=head, pull=9)


def list_events(run: int = 1) -> list[e.TaskEvent]:
    """Return one event about a task of each kind. The facts of a run are those of run number
    `run`."""
    return [
        create_request(),
        create_ask(e.PlanApproved),
        create_ask(e.Answered, text="the big one"),
        create_ask(e.ChangesRequested, review=REVIEW),
        create_approval(),
        create_ask(e.StopRequested),
        create_ask(e.RetryRequested),
        create_ask(e.ModelChosen, model="openai:gpt-5"),
        create_ask(e.StatusAsked),
        create_ask(e.HelpAsked),
        e.PlainComment(issue=ISSUE, on_pull=True),
        e.PlanningStarted(issue=ISSUE, run=run),
        e.RunStarted(issue=ISSUE, run=run),
        e.PlanReady(issue=ISSUE, run=run, plan="first this"),
        e.QuestionAsked(issue=ISSUE, run=run, question="Which cart?"),
        create_patch_ready(run),
        e.NothingToChange(issue=ISSUE, run=run, summary="It is right as it is."),
        e.RunFailed(issue=ISSUE, run=run, reason="the tests hang"),
        e.BudgetSpent(issue=ISSUE, run=run, reason="the budget of 60 steps is spent"),
        e.RunHalted(issue=ISSUE, run=run, reason="the model refused the key"),
        e.OrderRefused(issue=ISSUE, reason="the push was refused"),
        e.OrderParked(issue=ISSUE, reason="the App may not push"),
        e.AccessLost(issue=ISSUE, reason="the repository is archived"),
        e.AccessRegained(issue=ISSUE),
        e.PatchPushed(issue=ISSUE, head="h1"),
        e.PullOpened(issue=ISSUE, number=9),
        e.CommitsPushed(issue=ISSUE, head="h2"),
        e.ChecksFailed(issue=ISSUE, head="h1", summary="2 tests fail"),
        e.Conflicted(issue=ISSUE, head="h1"),
        e.ApprovalDismissed(issue=ISSUE),
        e.Merged(issue=ISSUE, by="alice"),
        e.PullClosed(issue=ISSUE, by="alice"),
        e.PullReopened(issue=ISSUE, by="alice"),
        e.IssueDropped(issue=ISSUE, by="alice"),
        e.RequestWithdrawn(issue=ISSUE, by="alice"),
    ]
