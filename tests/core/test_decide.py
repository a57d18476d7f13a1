"""Decisions: what Osiris does about each event."""

from dataclasses import replace

import pytest

from osiris.core import effects as f
from osiris.core import events as e
from osiris.core.decide import decide
from osiris.core.decide.requests import branch_name
from osiris.core.errors import RunEnded, Unavailable
from osiris.core.policy import Policy
from osiris.core.ports.models import SpentBudget
from osiris.core.review import Review
from osiris.core.task import State, Task
from tests.core.events import (
    ISSUE,
    OUTSIDER,
    REVIEW,
    SOURCE,
    WORK,
    create_approval,
    create_ask,
    create_patch_ready,
    create_request,
    list_events,
)

POLICY = Policy(steps=10, minutes=5)


def play(*events: e.Event, task: Task | None = None) -> tuple[Task, list[f.Effect]]:
    """Apply events to a task. Return the task, and the effects of the last event."""
    effects: list[f.Effect] = []
    for event in events:
        task, effects = decide(task, event, POLICY)
    assert task is not None
    return task, effects


def list_kinds(effects: list[f.Effect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


STARTED = e.RunStarted(issue=ISSUE, run=1)
IN_REVIEW = (
    create_request(),
    STARTED,
    create_patch_ready(),
    e.PatchPushed(issue=ISSUE, head="h1"),
    e.PullOpened(issue=ISSUE, number=9),
)
CHANGES = create_ask(e.ChangesRequested, review=REVIEW, said=e.SourceRef("review", "R1"))


def test_a_request_starts_one_run_and_says_so():
    task, effects = play(create_request(said=SOURCE))
    assert (task.state, task.branch, task.requester) == (
        State.QUEUED,
        "osiris/7-fix-the-cart",
        "alice",
    )
    assert list_kinds(effects) == ["StartRun", "React", "Report"]
    run = effects[0]
    assert (run.run, run.purpose, run.steps, run.minutes) == (1, f.Purpose.BUILD, 10, 5)


def test_the_same_request_again_starts_nothing():
    assert play(create_request(), create_request())[1] == []
    assert play(create_request(), STARTED, create_request(said=SOURCE))[1] == [
        f.Reply(issue=ISSUE, topic=f.Topic.STATUS, dedup_key="status:42")
    ]


def test_a_patch_is_pushed_and_only_then_opened_as_a_draft():
    task, effects = play(create_request(), STARTED, create_patch_ready())
    assert task.state is State.REVIEW
    assert list_kinds(effects) == ["StopRun", "Push", "Report"]
    assert (effects[1].pull, effects[1].reviews) == (None, ())
    task, effects = play(e.PatchPushed(issue=ISSUE, head="h1"), task=task)
    assert (list_kinds(effects), effects[0].request, effects[0].work) == (
        ["OpenDraftPull", "Report"],
        "It loses items.",
        WORK,
    )


def test_a_push_that_was_refused_or_overtaken_opens_nothing():
    ready = (create_request(), STARTED, create_patch_ready())
    assert list_kinds(play(*ready, e.OrderRefused(issue=ISSUE, reason="no"))[1]) == [
        "StopRun",
        "Report",
    ]
    assert list_kinds(
        play(*ready, create_ask(e.StopRequested), e.PatchPushed(issue=ISSUE, head="h1"))[1]
    ) == ["Report"]


def test_what_was_pushed_and_opened_is_remembered_and_reported():
    task, effects = play(*IN_REVIEW)
    assert (task.pull, task.head, list_kinds(effects)) == (9, "h1", ["Report"])


def test_a_review_starts_one_run_with_the_whole_review_as_its_brief():
    task, effects = play(*IN_REVIEW, CHANGES)
    assert (task.state, task.run) == (State.RUNNING, 2)
    assert list_kinds(effects) == ["StartRun", "React", "Report"]
    assert (effects[0].purpose, effects[0].reviews) == (f.Purpose.REVISE, (REVIEW,))


def test_the_answer_to_a_review_names_the_reviewer_and_the_open_pull_request():
    task, effects = play(*IN_REVIEW, CHANGES, create_patch_ready(2))
    assert (effects[1].pull, effects[1].reviews) == (9, (REVIEW,))
    pushed = e.PatchPushed(issue=ISSUE, head="h2", answered=effects[1].reviews)
    task, effects = play(pushed, task=task)
    assert (task.reviews, task.head, list_kinds(effects)) == ((), "h2", ["Report"])


def test_a_review_whose_answer_could_not_be_pushed_is_still_to_be_answered():
    refused = e.OrderRefused(issue=ISSUE, reason="somebody else pushed")
    _, effects = play(
        *IN_REVIEW, CHANGES, create_patch_ready(2), refused, create_ask(e.RetryRequested)
    )
    assert effects[0].reviews == (REVIEW,)


def test_a_refused_push_loses_neither_the_review_it_answers_nor_the_one_that_waits():
    late = create_ask(e.ChangesRequested, review=Review(by="carol", text="And this."))
    task, effects = play(*IN_REVIEW, CHANGES, late, create_patch_ready(2))
    assert (effects[-1].reviews, task.reviews) == ((late.review,), (REVIEW, late.review))
    assert play(e.PatchPushed(issue=ISSUE, head="h2", answered=(REVIEW,)), task=task)[
        0
    ].reviews == (late.review,)
    refused = e.OrderRefused(issue=ISSUE, reason="somebody else pushed")
    assert play(refused, create_ask(e.RetryRequested), task=task)[1][0].reviews == (
        REVIEW,
        late.review,
    )


def test_an_approval_of_the_old_commit_does_not_cover_what_is_being_pushed():
    task, _ = play(*IN_REVIEW, CHANGES, create_patch_ready(2), create_approval("h1", "h1"))
    assert task.state is State.APPROVED
    task, effects = play(e.PatchPushed(issue=ISSUE, head="h2"), task=task)
    assert (task.state, task.head, task.approved, list_kinds(effects)) == (
        State.REVIEW,
        "h2",
        None,
        ["Report"],
    )


def test_an_approval_that_came_before_our_own_word_of_the_push_stands():
    task, _ = play(*IN_REVIEW, CHANGES, create_patch_ready(2), create_approval("h2", "h2"))
    task, _effects = play(e.PatchPushed(issue=ISSUE, head="h2", answered=(REVIEW,)), task=task)
    assert (task.state, task.approved, task.reviews) == (State.APPROVED, "h2", ())


def test_a_review_of_a_paused_task_ends_the_paused_run():
    another = create_ask(e.ChangesRequested, review=REVIEW, said=e.SourceRef("review", "another"))
    _task, effects = play(
        *IN_REVIEW, CHANGES, e.BudgetSpent(issue=ISSUE, run=2, reason="spent"), another
    )
    assert (list_kinds(effects)[:2], effects[0].run, effects[1].run) == (
        ["StopRun", "StartRun"],
        2,
        3,
    )


def test_a_review_that_comes_while_the_agent_works_is_the_next_brief():
    late = create_ask(e.ChangesRequested, review=Review(by="carol", text="And this."))
    task, effects = play(*IN_REVIEW, CHANGES, late)
    assert (task.waiting, list_kinds(effects)) == ((late.review,), [])
    task, effects = play(create_patch_ready(2), task=task)
    assert (task.state, task.run, task.waiting) == (State.RUNNING, 3, ())
    assert list_kinds(effects) == ["StopRun", "Push", "Report", "StartRun"]


def test_a_review_of_finished_work_changes_nothing():
    assert play(*IN_REVIEW, e.Merged(issue=ISSUE, by="bob"), CHANGES)[1] == []


def test_a_review_answered_without_a_change_is_answered_in_words():
    task, effects = play(
        *IN_REVIEW, CHANGES, e.NothingToChange(issue=ISSUE, run=2, summary="It is right.")
    )
    assert (task.state, task.reviews, list_kinds(effects)) == (
        State.REVIEW,
        (),
        ["StopRun", "Reply", "Report"],
    )
    assert effects[1].on_pull


def test_an_approval_counts_for_the_commit_it_was_given_for():
    task, effects = play(*IN_REVIEW, create_approval("h1", "h1"))
    assert (task.state, task.approved, task.approved_by) == (State.APPROVED, "h1", "alice")
    assert list_kinds(effects) == ["MarkReady", "Report"]
    assert play(*IN_REVIEW, create_approval("h0", "h1"))[0].state is State.REVIEW


def test_new_commits_void_an_approval():
    task, _ = play(*IN_REVIEW, create_approval(), e.CommitsPushed(issue=ISSUE, head="h1"))
    assert task.state is State.APPROVED
    task, effects = play(e.CommitsPushed(issue=ISSUE, head="h2"), task=task)
    assert (task.state, task.approved, task.head, list_kinds(effects)) == (
        State.REVIEW,
        None,
        "h2",
        ["Report"],
    )


def test_a_dismissed_approval_is_none():
    task, _ = play(*IN_REVIEW, create_approval(), e.ApprovalDismissed(issue=ISSUE))
    assert (task.state, task.approved, task.approved_by) == (State.REVIEW, None, None)


def test_a_merge_ends_the_task():
    task, effects = play(*IN_REVIEW, create_approval(), e.Merged(issue=ISSUE, by="bob"))
    assert (task.state, list_kinds(effects)) == (State.DONE, ["StopRun", "Report"])


@pytest.mark.parametrize(
    ("event", "state", "reason"),
    [
        (create_ask(e.StopRequested, said=SOURCE), State.CANCELLED, "alice stopped it"),
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
    task, effects = play(create_request(), STARTED, event)
    assert (task.state, task.reason) == (state, reason)
    assert "StopRun" in list_kinds(effects)
    assert list_kinds(effects)[-1] == "Report"


def test_a_spent_budget_pauses_and_a_retry_goes_on_in_the_same_run():
    task, _ = play(create_request(), STARTED, e.BudgetSpent(issue=ISSUE, run=1, reason="spent"))
    assert (task.state, task.before) == (State.PAUSED, State.RUNNING)
    task, effects = play(create_ask(e.RetryRequested), task=task)
    assert (task.state, task.run, task.budget_grants) == (State.RUNNING, 1, 2)
    assert (list_kinds(effects), effects[0].steps) == (["StartRun", "RequeueParked", "Report"], 20)


def test_a_halted_run_goes_on_in_its_old_budget():
    task, effects = play(
        create_request(),
        STARTED,
        e.RunHalted(issue=ISSUE, run=1, reason="the model refused the key"),
    )
    assert (task.state, task.reason, list_kinds(effects)) == (
        State.PAUSED,
        "the model refused the key",
        ["Report"],
    )
    task, effects = play(create_ask(e.RetryRequested), task=task)
    assert (task.state, task.run, effects[0].steps) == (State.RUNNING, 1, 10)


def test_a_chosen_model_thinks_from_the_next_step_on_and_in_every_later_run():
    task, effects = play(create_request(), STARTED, create_ask(e.ModelChosen, model="openai:gpt-5"))
    assert (task.state, task.model, task.model_by) == (State.RUNNING, "openai:gpt-5", "alice")
    assert effects[0] == f.SwitchModel(issue=ISSUE, run=1, model="openai:gpt-5")
    task, effects = play(
        e.RunFailed(issue=ISSUE, run=1, reason="no"), create_ask(e.RetryRequested), task=task
    )
    assert effects[0].model == "openai:gpt-5"


def test_a_model_chosen_at_rest_is_remembered_and_nothing_is_started():
    task, effects = play(
        *IN_REVIEW,
        create_ask(e.ModelChosen, model="openai:gpt-5", said=e.SourceRef("comment", "5")),
    )
    assert (task.state, task.model, list_kinds(effects)) == (
        State.REVIEW,
        "openai:gpt-5",
        ["React", "Report"],
    )


def test_a_model_that_cannot_think_is_told_and_nothing_changes():
    before, _ = play(create_request(), STARTED)
    for said in (e.SourceRef("comment", "5"), None):
        request = create_ask(
            e.ModelChosen, model="x:y", trouble="there is no model 'x:y' here", said=said
        )
        task, [reply] = play(request, task=before)
        assert task == before
        assert (reply.topic, reply.detail) == (f.Topic.MODEL, "there is no model 'x:y' here")


def test_the_repository_says_who_plans_and_who_builds():
    policy = Policy(models={"plan": "a:plan", "build": "a:build"}, usd=2.0)
    _, [start, *_] = decide(None, create_request(), policy)
    assert (start.model, start.usd) == ("a:build", 2.0)


def test_a_retry_after_a_failure_is_a_new_run_with_every_review_that_is_open():
    late = create_ask(e.ChangesRequested, review=Review(by="carol", text="And this."))
    failed = e.RunFailed(issue=ISSUE, run=2, reason="no")
    task, effects = play(*IN_REVIEW, CHANGES, late, failed, create_ask(e.RetryRequested))
    assert (task.state, task.run, task.branch) == (State.QUEUED, 3, "osiris/7-fix-the-cart")
    assert effects[0].reviews == (REVIEW, late.review)


def test_after_a_rejection_the_work_begins_anew_on_its_own_branch():
    task, _ = play(*IN_REVIEW, e.PullClosed(issue=ISSUE, by="bob"), create_request())
    assert (task.branch, task.pull, task.head, task.generation) == (
        "osiris/7-fix-the-cart-2",
        None,
        None,
        2,
    )


def test_a_new_request_for_merged_work_begins_anew_with_the_issue_as_it_is_now():
    edited = create_ask(e.TaskRequested, title="Fix the till!", body="It rounds.")
    merged = (*IN_REVIEW, create_approval(), e.Merged(issue=ISSUE, by="bob"))
    task, effects = play(*merged, edited)
    assert (task.state, task.branch, task.pull, task.approved, task.reviews) == (
        State.QUEUED,
        "osiris/7-fix-the-till-2",
        None,
        None,
        (),
    )
    assert (task.title, task.body, list_kinds(effects)) == (
        "Fix the till!",
        "It rounds.",
        ["StartRun", "Report"],
    )
    assert "StartRun" not in list_kinds(play(*merged, create_ask(e.RetryRequested))[1])


def test_a_failed_check_and_a_conflict_start_runs_of_their_own_purpose():
    task, effects = play(*IN_REVIEW, e.ChecksFailed(issue=ISSUE, head="h1", summary="red"))
    assert (task.reviews[0].text, effects[0].purpose) == ("red", f.Purpose.FIX_CHECKS)
    assert (
        play(*IN_REVIEW, e.Conflicted(issue=ISSUE, head="h1"))[1][0].purpose
        is f.Purpose.RESOLVE_CONFLICT
    )
    assert play(*IN_REVIEW, e.ChecksFailed(issue=ISSUE, head="h0", summary="old"))[1] == []


def test_a_plan_waits_for_approval_and_a_question_for_its_answer():
    planning = (create_request(), e.PlanningStarted(issue=ISSUE, run=1))
    task, _ = play(*planning, e.PlanReady(issue=ISSUE, run=1, plan="first this"))
    assert (task.state, task.reason) == (State.PLANNED, "first this")
    assert list_kinds(play(create_ask(e.PlanApproved), task=task)[1])[0] == "StartRun"
    task, _ = play(*planning, e.QuestionAsked(issue=ISSUE, run=1, question="Which?"))
    assert (task.state, task.before, task.reason) == (State.ASKING, State.PLANNING, "Which?")
    task, effects = play(create_ask(e.Answered, text="the big one"), task=task)
    assert (task.state, effects[1].purpose) == (State.PLANNING, f.Purpose.PLAN)


def test_a_pull_request_that_is_opened_again_is_under_review_again():
    closed = e.PullClosed(issue=ISSUE, by="bob")
    assert play(*IN_REVIEW, closed, e.PullReopened(issue=ISSUE, by="bob"))[0].state is State.REVIEW


@pytest.mark.parametrize(
    "event",
    [event for event in list_events() if isinstance(event, e.Ask)],
    ids=lambda x: type(x).__name__,
)
def test_an_outsider_moves_nothing_and_is_refused_once(event: e.Ask):
    task, _ = play(*IN_REVIEW)
    after, effects = decide(task, replace(event, actor=OUTSIDER), POLICY)
    assert after == task
    refusal = f.Reply(issue=ISSUE, topic=f.Topic.REFUSED, dedup_key="refused:mallory", to="mallory")
    assert effects == ([] if isinstance(event, e.Approved) else [refusal])


def test_a_command_on_an_issue_without_a_task_gets_help():
    for ask_type in (e.HelpAsked, e.StatusAsked, e.StopRequested, e.RetryRequested):
        task, effects = decide(None, create_ask(ask_type, said=SOURCE), POLICY)
        assert (task, effects) == (
            None,
            [f.Reply(issue=ISSUE, topic=f.Topic.HELP, dedup_key="help:42")],
        )
    assert decide(None, e.Merged(issue=ISSUE, by="x"), POLICY) == (None, [])


def test_an_unknown_command_is_named_in_the_help():
    [reply] = play(create_request(), create_ask(e.HelpAsked, unknown="dance"))[1]
    assert (reply.topic, reply.detail, reply.dedup_key) == (f.Topic.HELP, "dance", "help:alice")


def test_a_fact_of_another_run_is_void():
    assert play(create_request(), STARTED, create_patch_ready(2))[1] == []


def test_a_policy_that_cannot_be_read_starts_nothing_and_says_why():
    broken = Policy(broken="line 3")
    task, effects = decide(None, create_request(), broken)
    assert (task, list_kinds(effects), effects[0].detail) == (None, ["Reply"], "line 3")


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
    assert list_kinds(first)[0] == "StartRun"


def test_a_parked_order_pauses_the_task_and_a_retry_takes_it_up_without_a_new_run():
    task, effects = play(
        create_request(),
        STARTED,
        create_patch_ready(),
        e.OrderParked(issue=ISSUE, reason="the App may not push"),
    )
    assert (task.state, task.reason, list_kinds(effects)) == (
        State.PAUSED,
        "the App may not push",
        ["Report"],
    )
    task, effects = play(create_ask(e.RetryRequested), task=task)
    assert (task.state, task.run, list_kinds(effects)) == (
        State.REVIEW,
        1,
        ["RequeueParked", "Report"],
    )


def test_a_retry_takes_up_what_is_parked_even_where_it_moves_nothing():
    task, effects = play(*IN_REVIEW, create_ask(e.RetryRequested))
    assert (task.state, list_kinds(effects)) == (State.REVIEW, ["RequeueParked"])
    task, effects = play(create_ask(e.RetryRequested, said=e.SourceRef("comment", "5")), task=task)
    assert list_kinds(effects) == ["RequeueParked", "Reply"]


def test_without_access_the_task_rests_silently_and_goes_on_where_it_was():
    task, effects = play(
        create_request(), STARTED, e.AccessLost(issue=ISSUE, reason="the repository is archived")
    )
    assert (task.state, task.read_only, task.reason) == (
        State.PAUSED,
        True,
        "the repository is archived",
    )
    assert effects == [f.StopRun(issue=ISSUE, run=1, keep=True)]
    task, effects = play(e.AccessRegained(issue=ISSUE), task=task)
    assert (task.state, task.read_only, task.run) == (State.RUNNING, False, 1)
    assert list_kinds(effects) == ["StartRun", "RequeueParked", "Report"]


def test_access_that_comes_back_wakes_no_task_that_is_paused_for_another_reason():
    before, _ = play(create_request(), STARTED, e.BudgetSpent(issue=ISSUE, run=1, reason="spent"))
    assert play(e.AccessRegained(issue=ISSUE), task=before) == (before, [])


def test_a_parked_push_of_an_earlier_run_fails_the_task_and_a_retry_answers_every_review():
    late = create_ask(e.ChangesRequested, review=Review(by="carol", text="And this."))
    task, _ = play(*IN_REVIEW, CHANGES, late, create_patch_ready(2))
    assert (task.state, task.run) == (State.RUNNING, 3)
    task, _ = play(e.OrderParked(issue=ISSUE, reason="the App may not push", run=2), task=task)
    assert task.state is State.FAILED
    task, effects = play(create_ask(e.RetryRequested), task=task)
    assert (task.run, effects[0].reviews) == (4, (REVIEW, late.review))


def test_a_run_under_way_is_only_cut_off_when_its_task_rests():
    _task, effects = play(
        create_request(), STARTED, e.OrderParked(issue=ISSUE, reason="the App may not write")
    )
    assert effects[0] == f.StopRun(issue=ISSUE, run=1, keep=True)
    _task, effects = play(
        *IN_REVIEW, e.AccessLost(issue=ISSUE, reason="the repository is archived")
    )
    assert effects == []
