"""Decisions about conversations outside of GitHub."""

from dataclasses import replace

import pytest

from osiris.core import effects as f
from osiris.core import events as e
from osiris.core.conversation import Conversation
from osiris.core.decide import decide
from osiris.core.decide.conversations import decide_conversation, find_repository
from osiris.core.errors import Refused
from osiris.core.policy import Policy
from osiris.core.task import Task
from tests.core.events import ISSUE, OWNER, create_patch_ready

ANN = e.Principal(name="ann", authentication=e.Authentication.GITHUB)
BEN = e.Principal(name="ben", authentication=e.Authentication.GITHUB)
ADDRESS = e.Address("toy", "t1")
REQUEST = e.RequestMade(
    key="k", repo="acme/shop", title="T", body="B", principal=ANN, address=ADDRESS
)
REQUEST_WITHOUT_REPO = replace(REQUEST, repo="")


def create_message(text: str, principal: e.Principal = ANN, key: str = "m") -> e.MessageReceived:
    return e.MessageReceived(address=ADDRESS, key=key, principal=principal, text=text)


def play(*events: e.ConversationEvent) -> tuple[Conversation | None, list[f.Effect]]:
    """Return the conversation, and the effects of the last event."""
    conversation: Conversation | None = None
    effects: list[f.Effect] = []
    for event in events:
        conversation, effects = decide_conversation(conversation, event)
    return conversation, effects


def build_open_issue(key: str = "k", repo: str = "acme/shop") -> f.OpenIssue:
    return f.OpenIssue(key=key, repo=repo, title="T", body="B", principal=ANN, address=ADDRESS)


def list_topics(effects: list[f.Effect]) -> list[str]:
    return [effect.topic.value for effect in effects if isinstance(effect, f.SendMessage)]


REQUEST_REFUSED = e.RequestRefused(address=ADDRESS, key="k", reason="no such repository")
REQUEST_FILED = e.RequestFiled(address=ADDRESS, issue=ISSUE)


def test_a_request_that_nobody_is_to_be_told_about_is_filed_at_once():
    request = replace(REQUEST, address=None)
    assert play(request) == (None, [replace(build_open_issue(), address=None)])


def test_a_request_with_its_repository_is_filed_at_once():
    conversation, effects = play(REQUEST)
    assert (effects, conversation.is_filing) == ([build_open_issue()], True)
    assert str(effects[0].address) == "toy:t1"


def test_a_request_without_a_repository_asks_for_it_and_the_answer_files_it():
    assert list_topics(play(REQUEST_WITHOUT_REPO)[1]) == ["which_repository"]
    assert play(REQUEST_WITHOUT_REPO, create_message(" https://github.com/acme/shop.git "))[1] == [
        build_open_issue()
    ]


def test_an_answer_that_is_no_repository_is_said_to_be_none():
    conversation, effects = play(REQUEST_WITHOUT_REPO, create_message("the shop"))
    assert list_topics(effects) == ["unclear_repository"]
    assert conversation.request == REQUEST_WITHOUT_REPO
    assert play(REQUEST_WITHOUT_REPO, create_message("the shop"), create_message("acme/shop"))[
        1
    ] == [build_open_issue()]


def test_only_who_asked_answers():
    assert play(REQUEST_WITHOUT_REPO, create_message("evil/shop", BEN)) == (
        *play(REQUEST_WITHOUT_REPO)[:1],
        [],
    )


@pytest.mark.parametrize("word", ["cancel", " Stop "])
def test_a_request_can_be_cancelled_before_it_is_filed(word: str):
    conversation, effects = play(REQUEST_WITHOUT_REPO, create_message(word))
    assert (list_topics(effects), conversation.request) == (["withdrawn"], None)
    assert play(REQUEST_WITHOUT_REPO, create_message(word), REQUEST)[1] == [build_open_issue()]


def test_a_second_answer_while_the_request_is_being_filed_files_it_nowhere_else():
    for word in ("acme/store", "cancel"):
        assert list_topics(
            play(REQUEST_WITHOUT_REPO, create_message("acme/shop"), create_message(word))[1]
        ) == ["filing"]


def test_a_second_request_in_a_conversation_waits_for_its_own_turn():
    conversation, effects = play(REQUEST_WITHOUT_REPO, replace(REQUEST, key="k2"))
    assert (list_topics(effects), conversation.request) == (["busy"], REQUEST_WITHOUT_REPO)


def test_a_refused_request_can_be_filed_elsewhere_under_another_key():
    conversation, effects = play(REQUEST, REQUEST_REFUSED)
    assert (list_topics(effects), conversation.is_filing) == (["refused"], False)
    assert play(REQUEST, REQUEST_REFUSED, create_message("acme/store"))[1] == [
        build_open_issue("k.2", "acme/store")
    ]


def test_once_it_is_filed_people_are_sent_to_the_issue_once():
    conversation, effects = play(REQUEST, REQUEST_FILED)
    assert (list_topics(effects), conversation.request, conversation.issue) == (
        ["filed"],
        None,
        ISSUE,
    )
    [first] = play(REQUEST, REQUEST_FILED, create_message("and a test"))[1]
    [second] = play(
        REQUEST, REQUEST_FILED, create_message("and a test"), create_message("please", key="n")
    )[1]
    assert (first.topic, first.dedup_key) == (f.MessageTopic.ELSEWHERE, second.dedup_key)
    assert list_topics(play(REQUEST, REQUEST_FILED, replace(REQUEST, key="k2"))[1]) == []


def test_after_a_cancelled_request_a_message_is_about_nothing():
    assert play(REQUEST_WITHOUT_REPO, create_message("stop"), create_message("thanks"))[1] == []


@pytest.mark.parametrize("name", ["", "x" * 256, "a\0b"])
def test_a_conversation_has_a_name_that_can_be_stored(name: str):
    with pytest.raises(Refused, match="name of the conversation"):
        e.Address("toy", name)


def test_a_filed_request_that_starts_no_task_is_said_in_its_conversation():
    request = e.TaskRequested(issue=ISSUE, actor=OWNER, title="T", body="B", address=ADDRESS)
    broken = Policy(broken="line 1 is wrong")
    assert list_topics(decide(None, request, broken)[1]) == ["not_started"]
    assert list_topics(decide(None, replace(request, address=None), broken)[1]) == []
    task, _ = decide(None, request, Policy())
    retry = e.RetryRequested(issue=ISSUE, actor=OWNER)
    assert (
        list_topics(decide(task, retry, broken)[1]) == []
    )  # the answer is given where the command was written


@pytest.mark.parametrize("event", [create_message("acme/shop"), REQUEST_REFUSED, REQUEST_FILED])
def test_a_conversation_without_a_request_is_not_spoken_in(event: e.ConversationEvent):
    assert play(event) == (None, [])


@pytest.mark.parametrize(
    ("text", "repo"),
    [
        ("acme/shop", "acme/shop"),
        ("https://github.com/acme/shop/", "acme/shop"),
        ("in acme/shop", ""),
        ("acme", ""),
        ("a/b/c", ""),
    ],
)
def test_a_repository_is_a_whole_answer(text: str, repo: str):
    assert find_repository(text) == repo


# ── subscribers of a task ─────────────────────────────────────────────────────────────────────────


def play_task(*events: e.TaskEvent) -> tuple[Task, list[str]]:
    """Return the task, and the topics of the messages to its subscribers."""
    request = e.TaskRequested(issue=ISSUE, actor=OWNER, title="T", body="B", address=ADDRESS)
    task: Task | None = None
    topics: list[str] = []
    for event in (request, e.RunStarted(issue=ISSUE, run=1), *events):
        task, effects = decide(task, event, Policy())
        topics += list_topics(effects)
    assert task is not None
    return task, topics


PULL = (
    create_patch_ready(),
    e.PatchPushed(issue=ISSUE, head="h"),
    e.PullOpened(issue=ISSUE, number=9),
)


def test_subscribers_are_told_of_the_pull_request_and_of_its_end_once():
    merged = e.Merged(issue=ISSUE, by="alice")
    task, topics = play_task(*PULL, PULL[2], merged, merged)
    assert (task.subscribers, topics) == ((ADDRESS,), ["pull_opened", "state_changed"])


def test_subscribers_are_told_of_a_pause_and_not_of_every_state():
    spent = e.BudgetSpent(issue=ISSUE, run=1, reason="spent")
    assert play_task(spent)[1] == ["state_changed"]
    assert play_task()[1] == []


def test_a_second_pause_of_one_run_is_a_message_of_its_own():
    spent = e.BudgetSpent(issue=ISSUE, run=1, reason="spent")
    retry = e.RetryRequested(issue=ISSUE, actor=OWNER)
    keys = set()
    task: Task | None = play_task()[0]
    for event in (spent, retry, spent):
        task, effects = decide(task, event, Policy())
        keys |= {effect.dedup_key for effect in effects if isinstance(effect, f.SendMessage)}
    assert len(keys) == 2
