"""What Osiris does about each thing that happens."""

from dataclasses import replace

import pytest

from osiris.core import effects as f
from osiris.core import events as e
from osiris.core.decide import decide
from osiris.core.decide.requests import branch_name
from osiris.core.errors import RunEnded, Unavailable
from osiris.core.policy import Policy
from osiris.core.ports.models import SpentBudget
from osiris.core.task import State, Task
from tests.core.events import (
    ISSUE,
    OUTSIDER,
    REVIEW,
    SAID,
    WORK,
    approved,
    asked,
    one_of_each,
    patch_ready,
    requested,
)

POLICY = Policy(steps=10, minutes=5)


def play(*events: e.Event, task: Task | None = None) -> tuple[Task, list[f.Effect]]:
    """The task and the orders of the last event."""
    orders: list[f.Effect] = []
    for event in events:
        task, orders = decide(task, event, POLICY)
    assert task is not None
    return task, orders


def kinds(orders: list[f.Effect]) -> list[str]:
    return [type(order).__name__ for order in orders]


STARTED = e.RunStarted(issue=ISSUE, run=1)
IN_REVIEW = (
    requested(),
    STARTED,
    patch_ready(),
    e.PatchPushed(issue=ISSUE, head="h1"),
    e.PullOpened(issue=ISSUE, number=9),
)
CHANGES = asked(e.ChangesRequested, review=REVIEW, said=e.SourceRef("review", "R1"))


def test_a_request_starts_one_run_and_says_so():
    task, orders = play(requested(said=SAID))
    assert (task.state, task.branch, task.requester) == (
        State.QUEUED,
        "osiris/7-fix-the-cart",
        "alice",
    )
    assert kinds(orders) == ["StartRun", "React", "Report"]
    run = orders[0]
    assert (run.run, run.purpose, run.steps, run.minutes) == (1, f.Purpose.BUILD, 10, 5)


def test_the_same_request_again_starts_nothing():
    assert play(requested(), requested())[1] == []
    assert play(requested(), STARTED, requested(said=SAID))[1] == [
        f.Reply(issue=ISSUE, topic=f.Topic.STATUS, dedup_key="status:42")
    ]


def test_a_patch_is_pushed_and_only_then_opened_as_a_draft():
    task, orders = play(requested(), STARTED, patch_ready())
    assert task.state is State.REVIEW
    assert kinds(orders) == ["StopRun", "Push", "Report"]
    assert (orders[1].pull, orders[1].reviews) == (None, ())
    task, orders = play(e.PatchPushed(issue=ISSUE, head="h1"), task=task)
    assert (kinds(orders), orders[0].request, orders[0].work) == (
        ["OpenDraftPull", "Report"],
        "It loses items.",
        WORK,
    )


def test_a_push_that_was_refused_or_overtaken_opens_nothing():
    ready = (requested(), STARTED, patch_ready())
    assert kinds(play(*ready, e.OrderRefused(issue=ISSUE, reason="no"))[1]) == ["StopRun", "Report"]
    assert kinds(
        play(*ready, asked(e.StopRequested), e.PatchPushed(issue=ISSUE, head="h1"))[1]
    ) == ["Report"]


def test_what_was_pushed_and_opened_is_remembered_and_reported():
    task, orders = play(*IN_REVIEW)
    assert (task.pull, task.head, kinds(orders)) == (9, "h1", ["Report"])


def test_a_review_starts_one_run_with_the_whole_review_as_its_brief():
    task, orders = play(*IN_REVIEW, CHANGES)
    assert (task.state, task.run) == (State.RUNNING, 2)
    assert kinds(orders) == ["StartRun", "React", "Report"]
    assert (orders[0].purpose, orders[0].reviews) == (f.Purpose.REVISE, (REVIEW,))


def test_the_answer_to_a_review_names_the_reviewer_and_the_open_pull_request():
    task, orders = play(*IN_REVIEW, CHANGES, patch_ready(2))
    assert (orders[1].pull, orders[1].reviews) == (9, (REVIEW,))
    pushed = e.PatchPushed(issue=ISSUE, head="h2", answered=orders[1].reviews)
    task, orders = play(pushed, task=task)
    assert (task.reviews, task.head, kinds(orders)) == ((), "h2", ["Report"])


def test_a_review_whose_answer_could_not_be_pushed_is_still_to_be_answered():
    refused = e.OrderRefused(issue=ISSUE, reason="somebody else pushed")
    _, orders = play(*IN_REVIEW, CHANGES, patch_ready(2), refused, asked(e.RetryRequested))
    assert orders[0].reviews == (REVIEW,)


def test_a_refused_push_loses_neither_the_review_it_answers_nor_the_one_that_waits():
    late = asked(e.ChangesRequested, review=e.Review(by="carol", text="And this."))
    task, orders = play(*IN_REVIEW, CHANGES, late, patch_ready(2))
    assert (orders[-1].reviews, task.reviews) == ((late.review,), (REVIEW, late.review))
    assert play(e.PatchPushed(issue=ISSUE, head="h2", answered=(REVIEW,)), task=task)[
        0
    ].reviews == (late.review,)
    refused = e.OrderRefused(issue=ISSUE, reason="somebody else pushed")
    assert play(refused, asked(e.RetryRequested), task=task)[1][0].reviews == (REVIEW, late.review)


def test_an_approval_of_the_old_commit_does_not_cover_what_is_being_pushed():
    task, _ = play(*IN_REVIEW, CHANGES, patch_ready(2), approved("h1", "h1"))
    assert task.state is State.APPROVED
    task, orders = play(e.PatchPushed(issue=ISSUE, head="h2"), task=task)
    assert (task.state, task.head, task.approved, kinds(orders)) == (
        State.REVIEW,
        "h2",
        None,
        ["Report"],
    )


def test_an_approval_that_came_before_our_own_word_of_the_push_stands():
    task, _ = play(*IN_REVIEW, CHANGES, patch_ready(2), approved("h2", "h2"))
    task, _orders = play(e.PatchPushed(issue=ISSUE, head="h2", answered=(REVIEW,)), task=task)
    assert (task.state, task.approved, task.reviews) == (State.APPROVED, "h2", ())


def test_a_review_of_a_paused_task_ends_the_paused_run():
    another = asked(e.ChangesRequested, review=REVIEW, said=e.SourceRef("review", "another"))
    _task, orders = play(
        *IN_REVIEW, CHANGES, e.BudgetSpent(issue=ISSUE, run=2, reason="spent"), another
    )
    assert (kinds(orders)[:2], orders[0].run, orders[1].run) == (["StopRun", "StartRun"], 2, 3)


def test_a_label_on_merged_work_is_answered_with_what_it_is():
    [reply] = play(*IN_REVIEW, e.Merged(issue=ISSUE, by="bob"), requested())[1]
    assert (reply.topic, reply.dedup_key) == (f.Topic.STATUS, "status:done")


def test_a_review_that_comes_while_the_agent_works_is_the_next_brief():
    late = asked(e.ChangesRequested, review=e.Review(by="carol", text="And this."))
    task, orders = play(*IN_REVIEW, CHANGES, late)
    assert (task.waiting, kinds(orders)) == ((late.review,), [])
    task, orders = play(patch_ready(2), task=task)
    assert (task.state, task.run, task.waiting) == (State.RUNNING, 3, ())
    assert kinds(orders) == ["StopRun", "Push", "Report", "StartRun"]


def test_a_review_of_finished_work_changes_nothing():
    assert play(*IN_REVIEW, e.Merged(issue=ISSUE, by="bob"), CHANGES)[1] == []


def test_a_review_answered_without_a_change_is_answered_in_words():
    task, orders = play(
        *IN_REVIEW, CHANGES, e.NothingToChange(issue=ISSUE, run=2, summary="It is right.")
    )
    assert (task.state, task.reviews, kinds(orders)) == (
        State.REVIEW,
        (),
        ["StopRun", "Reply", "Report"],
    )
    assert orders[1].on_pull


def test_an_approval_counts_for_the_commit_it_was_given_for():
    task, orders = play(*IN_REVIEW, approved("h1", "h1"))
    assert (task.state, task.approved, task.approved_by) == (State.APPROVED, "h1", "alice")
    assert kinds(orders) == ["MarkReady", "Report"]
    assert play(*IN_REVIEW, approved("h0", "h1"))[0].state is State.REVIEW


def test_new_commits_void_an_approval():
    task, _ = play(*IN_REVIEW, approved(), e.CommitsPushed(issue=ISSUE, head="h1"))
    assert task.state is State.APPROVED
    task, orders = play(e.CommitsPushed(issue=ISSUE, head="h2"), task=task)
    assert (task.state, task.approved, task.head, kinds(orders)) == (
        State.REVIEW,
        None,
        "h2",
        ["Report"],
    )


def test_a_dismissed_approval_is_none():
    task, _ = play(*IN_REVIEW, approved(), e.ApprovalDismissed(issue=ISSUE))
    assert (task.state, task.approved, task.approved_by) == (State.REVIEW, None, None)


def test_a_merge_ends_the_task():
    task, orders = play(*IN_REVIEW, approved(), e.Merged(issue=ISSUE, by="bob"))
    assert (task.state, kinds(orders)) == (State.DONE, ["StopRun", "Report"])


@pytest.mark.parametrize(
    ("event", "state", "reason"),
    [
        (asked(e.StopRequested, said=SAID), State.CANCELLED, "alice stopped it"),
        (e.RequestWithdrawn(issue=ISSUE, by="al"), State.CANCELLED, "al withdrew the request"),
        (
            e.PullClosed(issue=ISSUE, by="al"),
            State.REJECTED,
            "al closed the pull request without merging it",
        ),
        (
            e.IssueDropped(issue=ISSUE, by="al"),
            State.REJECTED,
            "al closed the issue as not planned",
        ),
        (e.RunFailed(issue=ISSUE, run=1, reason="no luck"), State.FAILED, "no luck"),
        (e.OrderRefused(issue=ISSUE, reason="refused"), State.FAILED, "refused"),
    ],
)
def test_every_end_has_a_reason_and_stops_the_run(event: e.Event, state: State, reason: str):
    task, orders = play(requested(), STARTED, event)
    assert (task.state, task.reason) == (state, reason)
    assert "StopRun" in kinds(orders)
    assert kinds(orders)[-1] == "Report"


def test_a_spent_budget_pauses_and_a_retry_goes_on_in_the_same_run():
    task, _ = play(requested(), STARTED, e.BudgetSpent(issue=ISSUE, run=1, reason="spent"))
    assert (task.state, task.before) == (State.PAUSED, State.RUNNING)
    task, orders = play(asked(e.RetryRequested), task=task)
    assert (task.state, task.run, task.budget_grants) == (State.RUNNING, 1, 2)
    assert (kinds(orders), orders[0].steps) == (["StartRun", "RequeueParked", "Report"], 20)


def test_a_halted_run_goes_on_in_its_old_budget():
    task, orders = play(
        requested(), STARTED, e.RunHalted(issue=ISSUE, run=1, reason="the model refused the key")
    )
    assert (task.state, task.reason, kinds(orders)) == (
        State.PAUSED,
        "the model refused the key",
        ["Report"],
    )
    task, orders = play(asked(e.RetryRequested), task=task)
    assert (task.state, task.run, orders[0].steps) == (State.RUNNING, 1, 10)


def test_a_chosen_model_thinks_from_the_next_step_on_and_in_every_later_run():
    task, orders = play(requested(), STARTED, asked(e.ModelChosen, model="openai:gpt-5"))
    assert (task.state, task.model, task.model_by) == (State.RUNNING, "openai:gpt-5", "alice")
    assert orders[0] == f.SwitchModel(issue=ISSUE, run=1, model="openai:gpt-5")
    task, orders = play(
        e.RunFailed(issue=ISSUE, run=1, reason="no"), asked(e.RetryRequested), task=task
    )
    assert orders[0].model == "openai:gpt-5"


def test_a_model_chosen_at_rest_is_remembered_and_nothing_is_started():
    task, orders = play(
        *IN_REVIEW, asked(e.ModelChosen, model="openai:gpt-5", said=e.SourceRef("comment", "5"))
    )
    assert (task.state, task.model, kinds(orders)) == (
        State.REVIEW,
        "openai:gpt-5",
        ["React", "Report"],
    )


def test_a_model_that_cannot_think_is_told_and_nothing_changes():
    before, _ = play(requested(), STARTED)
    for said in (e.SourceRef("comment", "5"), None):
        wish = asked(e.ModelChosen, model="x:y", trouble="there is no model 'x:y' here", said=said)
        task, [order] = play(wish, task=before)
        assert task == before
        assert (order.topic, order.detail) == (f.Topic.MODEL, "there is no model 'x:y' here")


def test_the_repository_says_who_plans_and_who_builds():
    policy = Policy(models={"plan": "a:plan", "build": "a:build"}, usd=2.0)
    _, [start, *_] = decide(None, requested(), policy)
    assert (start.model, start.usd) == ("a:build", 2.0)


def test_a_retry_after_a_failure_is_a_new_run_with_every_review_that_is_open():
    late = asked(e.ChangesRequested, review=e.Review(by="carol", text="And this."))
    failed = e.RunFailed(issue=ISSUE, run=2, reason="no")
    task, orders = play(*IN_REVIEW, CHANGES, late, failed, asked(e.RetryRequested))
    assert (task.state, task.run, task.branch) == (State.QUEUED, 3, "osiris/7-fix-the-cart")
    assert orders[0].reviews == (REVIEW, late.review)


def test_after_a_rejection_the_work_begins_anew_on_its_own_branch():
    task, _ = play(*IN_REVIEW, e.PullClosed(issue=ISSUE, by="bob"), requested())
    assert (task.branch, task.pull, task.head, task.generation) == (
        "osiris/7-fix-the-cart-2",
        None,
        None,
        2,
    )


def test_a_failed_check_and_a_conflict_start_runs_of_their_own_purpose():
    task, orders = play(*IN_REVIEW, e.ChecksFailed(issue=ISSUE, head="h1", summary="red"))
    assert (task.reviews[0].text, orders[0].purpose) == ("red", f.Purpose.FIX_CHECKS)
    assert (
        play(*IN_REVIEW, e.Conflicted(issue=ISSUE, head="h1"))[1][0].purpose
        is f.Purpose.RESOLVE_CONFLICT
    )
    assert play(*IN_REVIEW, e.ChecksFailed(issue=ISSUE, head="h0", summary="old"))[1] == []


def test_a_plan_waits_for_approval_and_a_question_for_its_answer():
    planning = (requested(), e.PlanningStarted(issue=ISSUE, run=1))
    task, _ = play(*planning, e.PlanReady(issue=ISSUE, run=1, plan="first this"))
    assert (task.state, task.reason) == (State.PLANNED, "first this")
    assert kinds(play(asked(e.PlanApproved), task=task)[1])[0] == "StartRun"
    task, _ = play(*planning, e.QuestionAsked(issue=ISSUE, run=1, question="Which?"))
    assert (task.state, task.before, task.reason) == (State.ASKING, State.PLANNING, "Which?")
    task, orders = play(asked(e.Answered, text="the big one"), task=task)
    assert (task.state, orders[1].purpose) == (State.PLANNING, f.Purpose.PLAN)


def test_a_pull_request_that_is_opened_again_is_under_review_again():
    closed = e.PullClosed(issue=ISSUE, by="bob")
    assert play(*IN_REVIEW, closed, e.PullReopened(issue=ISSUE, by="bob"))[0].state is State.REVIEW


@pytest.mark.parametrize(
    "event",
    [event for event in one_of_each() if isinstance(event, e.Ask)],
    ids=lambda x: type(x).__name__,
)
def test_an_outsider_moves_nothing_and_is_refused_once(event: e.Ask):
    task, _ = play(*IN_REVIEW)
    after, orders = decide(task, replace(event, actor=OUTSIDER), POLICY)
    assert after == task
    refusal = f.Reply(issue=ISSUE, topic=f.Topic.REFUSED, dedup_key="refused:mallory", to="mallory")
    assert orders == ([] if isinstance(event, e.Approved) else [refusal])


def test_a_command_on_an_issue_without_a_task_gets_help():
    for wish in (e.HelpAsked, e.StatusAsked, e.StopRequested, e.RetryRequested):
        task, orders = decide(None, asked(wish, said=SAID), POLICY)
        assert (task, orders) == (
            None,
            [f.Reply(issue=ISSUE, topic=f.Topic.HELP, dedup_key="help:42")],
        )
    assert decide(None, e.Merged(issue=ISSUE, by="x"), POLICY) == (None, [])


def test_an_unknown_command_is_named_in_the_help():
    [reply] = play(requested(), asked(e.HelpAsked, unknown="dance"))[1]
    assert (reply.topic, reply.detail, reply.dedup_key) == (f.Topic.HELP, "dance", "help:alice")


def test_a_fact_of_another_run_is_void():
    assert play(requested(), STARTED, patch_ready(2))[1] == []


def test_a_policy_that_cannot_be_read_starts_nothing_and_says_why():
    broken = Policy(broken="line 3")
    task, orders = decide(None, requested(), broken)
    assert (task, kinds(orders), orders[0].detail) == (None, ["Reply"], "line 3")


def test_a_branch_is_named_after_the_issue():
    assert branch_name(
        3, "Ünïcode & Sons: a very long title that goes on and on and on", 1
    ).startswith("osiris/3-n-code-sons-a")
    assert branch_name(3, "!!!", 1) == "osiris/3-task"


def test_errors_carry_what_the_worker_needs():
    assert Unavailable("later", retry_in=3).retry_in == 3
    assert RunEnded(SpentBudget(reason="x")).outcome == SpentBudget(reason="x")
    assert str(ISSUE) == "acme/shop#7"
    assert WORK.model == "scripted:x"


def test_a_review_that_is_told_twice_is_heard_once():
    once, first = play(*IN_REVIEW, CHANGES)
    twice, second = play(CHANGES, task=once)
    assert (twice, second) == (once, [])
    assert kinds(first)[0] == "StartRun"


def test_a_parked_order_pauses_the_task_and_a_retry_takes_it_up_without_a_new_run():
    task, orders = play(
        requested(),
        STARTED,
        patch_ready(),
        e.OrderParked(issue=ISSUE, reason="the App may not push"),
    )
    assert (task.state, task.reason, kinds(orders)) == (
        State.PAUSED,
        "the App may not push",
        ["Report"],
    )
    task, orders = play(asked(e.RetryRequested), task=task)
    assert (task.state, task.run, kinds(orders)) == (State.REVIEW, 1, ["RequeueParked", "Report"])


def test_a_retry_takes_up_what_is_parked_even_where_it_moves_nothing():
    task, orders = play(*IN_REVIEW, asked(e.RetryRequested))
    assert (task.state, kinds(orders)) == (State.REVIEW, ["RequeueParked"])
    task, orders = play(asked(e.RetryRequested, said=e.SourceRef("comment", "5")), task=task)
    assert kinds(orders) == ["RequeueParked", "Reply"]


def test_without_access_the_task_rests_silently_and_goes_on_where_it_was():
    task, orders = play(
        requested(), STARTED, e.AccessLost(issue=ISSUE, reason="the repository is archived")
    )
    assert (task.state, task.read_only, task.reason) == (
        State.PAUSED,
        True,
        "the repository is archived",
    )
    assert orders == [f.StopRun(issue=ISSUE, run=1, keep=True)]
    task, orders = play(e.AccessRegained(issue=ISSUE), task=task)
    assert (task.state, task.read_only, task.run) == (State.RUNNING, False, 1)
    assert kinds(orders) == ["StartRun", "RequeueParked", "Report"]


def test_access_that_comes_back_wakes_no_task_that_is_paused_for_another_reason():
    before, _ = play(requested(), STARTED, e.BudgetSpent(issue=ISSUE, run=1, reason="spent"))
    assert play(e.AccessRegained(issue=ISSUE), task=before) == (before, [])


def test_a_parked_push_of_an_earlier_run_fails_the_task_and_a_retry_answers_every_review():
    late = asked(e.ChangesRequested, review=e.Review(by="carol", text="And this."))
    task, _ = play(*IN_REVIEW, CHANGES, late, patch_ready(2))
    assert (task.state, task.run) == (State.RUNNING, 3)
    task, _ = play(e.OrderParked(issue=ISSUE, reason="the App may not push", run=2), task=task)
    assert task.state is State.FAILED
    task, orders = play(asked(e.RetryRequested), task=task)
    assert (task.run, orders[0].reviews) == (4, (REVIEW, late.review))


def test_a_run_under_way_is_only_cut_off_when_its_task_rests():
    _task, orders = play(
        requested(), STARTED, e.OrderParked(issue=ISSUE, reason="the App may not write")
    )
    assert orders[0] == f.StopRun(issue=ISSUE, run=1, keep=True)
    _task, orders = play(*IN_REVIEW, e.AccessLost(issue=ISSUE, reason="the repository is archived"))
    assert orders == []
