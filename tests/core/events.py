"""One of each event, for tests that try them all."""

from osiris.core import events as e
from osiris.core.work import CommandRan, FileChange, Work

ISSUE = e.IssueRef("acme/shop", 7)
OWNER = e.Actor("alice", e.Role.MAINTAIN)
OUTSIDER = e.Actor("mallory", e.Role.READ)
SAID = e.SourceRef("comment", "42")
WORK = Work(
    summary="Done.",
    files=(FileChange(path="a.py", status="modified", additions=1, deletions=1),),
    commands=(CommandRan(command="pytest", exit_code=0, seconds=1.0),),
    instructions=(),
    model="scripted:x",
    steps=3,
    seconds=2.0,
)
REVIEW = e.Review(by="bob", text="A test, please.")


def asked(
    kind: type[e.Ask], actor: e.Actor = OWNER, said: e.SourceRef | None = None, **more: object
) -> e.Ask:
    return kind(issue=ISSUE, actor=actor, said=said, **more)


def requested(actor: e.Actor = OWNER, said: e.SourceRef | None = None) -> e.Ask:
    return asked(e.TaskRequested, actor, said, title="Fix the cart!", body="It loses items.")


def patch_ready(run: int = 1) -> e.PatchReady:
    return e.PatchReady(
        issue=ISSUE, run=run, tree="t" * 40, base="b" * 40, at=1_700_000_000, work=WORK
    )


def approved(commit: str = "h1", head: str = "h1") -> e.Ask:
    return asked(e.Approved, commit=commit, head=head, pull=9)


def one_of_each(run: int = 1) -> list[e.TaskEvent]:
    """Every kind of event about a task; the facts of a run are those of run number `run`."""
    return [
        requested(),
        asked(e.PlanApproved),
        asked(e.Answered, text="the big one"),
        asked(e.ChangesRequested, review=REVIEW),
        approved(),
        asked(e.StopRequested),
        asked(e.RetryRequested),
        asked(e.ModelChosen, model="openai:gpt-5"),
        asked(e.StatusAsked),
        asked(e.HelpAsked),
        e.PlanningStarted(issue=ISSUE, run=run),
        e.RunStarted(issue=ISSUE, run=run),
        e.PlanReady(issue=ISSUE, run=run, plan="first this"),
        e.QuestionAsked(issue=ISSUE, run=run, question="Which cart?"),
        patch_ready(run),
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
