"""Conversations outside of GitHub: a request, the question for its repository, and the issue.

A conversation has at most one request that is not filed yet.
"""

import re
from dataclasses import replace
from typing import assert_never

from osiris.core import events as e
from osiris.core.conversation import Conversation
from osiris.core.effects import Effect, MessageTopic, OpenIssue, SendMessage
from osiris.core.task import ENDED, State, Task

_REPOSITORY = re.compile(r"(?:https?://[^/\s]{1,255}/)?([\w.-]{1,100}/[\w.-]{1,100}?)(?:\.git)?/?")
_WITHDRAWALS = ("cancel", "stop")
_TOLD_STATES = (*ENDED, State.PAUSED)

ConversationDecision = tuple[Conversation | None, list[Effect]]


def decide_conversation(
    conversation: Conversation | None, event: e.ConversationEvent
) -> ConversationDecision:
    """Return the conversation after `event`, and the effects to perform.

    `conversation` is None before its first request. A request without an address is filed at once.
    """
    if isinstance(event, e.RequestMade):
        return _take_request(conversation, event)
    if conversation is None:
        return None, []
    match event:
        case e.MessageReceived():
            return _take_message(conversation, event)
        case e.RequestFiled():
            return _record_issue(conversation, event)
        case e.RequestRefused():
            return _record_refusal(conversation, event)
        case unknown:
            assert_never(unknown)


def notify_subscribers(was: Task | None, task: Task) -> list[Effect]:
    """Return the messages about a change of a task: its pull request was opened, or it is paused or
    over."""
    topics = []
    if task.pull is not None and (was is None or was.pull != task.pull):
        topics.append((MessageTopic.PULL_OPENED, f"pull:{task.pull}"))
    if task.state in _TOLD_STATES and (was is None or was.state is not task.state):
        key = f"{task.state}:{task.run}.{task.budget_grants}"
        topics.append((MessageTopic.STATE_CHANGED, key))
    return [
        SendMessage(address=address, topic=topic, dedup_key=f"{task.issue}:{key}", issue=task.issue)
        for address in task.subscribers
        for topic, key in topics
    ]


def report_not_started(event: e.TaskRequested, reason: str) -> list[Effect]:
    """Return the message that a filed request starts no task; none for a request on GitHub."""
    if event.address is None:
        return []
    message = SendMessage(
        address=event.address,
        topic=MessageTopic.NOT_STARTED,
        dedup_key=f"not_started:{event.issue}",
        issue=event.issue,
        detail=reason,
    )
    return [message]


def find_repository(text: str) -> str:
    """Return the repository (owner/name) that a whole text names, also by its URL; else ""."""
    found = _REPOSITORY.fullmatch(text.strip())
    return found[1] if found else ""


def _take_request(conversation: Conversation | None, event: e.RequestMade) -> ConversationDecision:
    if event.address is None:
        return None, [_open_issue(event, attempt=0)]
    conversation = conversation or Conversation(address=event.address)
    if conversation.request is not None:
        return conversation, [_create_message(event.address, MessageTopic.BUSY, event.key)]
    if event.repo:
        return _file_request(conversation, event)
    question = _create_message(event.address, MessageTopic.WHICH_REPOSITORY, event.key)
    return replace(conversation, request=event), [question]


def _take_message(conversation: Conversation, event: e.MessageReceived) -> ConversationDecision:
    """Take the repository from the answer of the person who made the request.

    What other people write meanwhile is no answer. What cannot be understood is answered.
    """
    request = conversation.request
    if request is None:
        return conversation, _refer_to_issue(conversation)
    if event.principal != request.principal:
        return conversation, []
    if conversation.is_filing:
        return conversation, [_create_message(event.address, MessageTopic.FILING, event.key)]
    if event.text.strip().casefold() in _WITHDRAWALS:
        withdrawn = _create_message(event.address, MessageTopic.WITHDRAWN, event.key)
        return replace(conversation, request=None, attempt=0), [withdrawn]
    if not (repo := find_repository(event.text)):
        unclear = _create_message(event.address, MessageTopic.UNCLEAR_REPOSITORY, event.key)
        return conversation, [unclear]
    return _file_request(conversation, replace(request, repo=repo))


def _file_request(conversation: Conversation, request: e.RequestMade) -> ConversationDecision:
    attempt = conversation.attempt + 1
    filing = replace(conversation, request=request, is_filing=True, attempt=attempt)
    return filing, [_open_issue(request, attempt)]


def _open_issue(request: e.RequestMade, attempt: int) -> OpenIssue:
    """Return the effect that files a request as an issue; a request that was refused once has
    another key at its next attempt."""
    return OpenIssue(
        key=request.key if attempt <= 1 else f"{request.key}.{attempt}",
        repo=request.repo,
        title=request.title,
        body=request.body,
        principal=request.principal,
        address=request.address,
    )


def _record_issue(conversation: Conversation, event: e.RequestFiled) -> ConversationDecision:
    filed = replace(conversation, request=None, is_filing=False, attempt=0, issue=event.issue)
    message = SendMessage(
        address=event.address,
        topic=MessageTopic.FILED,
        dedup_key=f"filed:{event.issue}",
        issue=event.issue,
    )
    return filed, [message]


def _record_refusal(conversation: Conversation, event: e.RequestRefused) -> ConversationDecision:
    """Keep the request, so that its maker can name another repository."""
    refused = _create_message(event.address, MessageTopic.REFUSED, event.key, event.reason)
    return replace(conversation, is_filing=False), [refused]


def _refer_to_issue(conversation: Conversation) -> list[Effect]:
    """Return one message that says where to go on; a second would be noise."""
    if conversation.issue is None:
        return []
    message = SendMessage(
        address=conversation.address,
        topic=MessageTopic.ELSEWHERE,
        dedup_key=f"elsewhere:{conversation.issue}",
        issue=conversation.issue,
    )
    return [message]


def _create_message(
    address: e.Address, topic: MessageTopic, key: str, detail: str = ""
) -> SendMessage:
    dedup_key = f"{topic}:{key}"
    return SendMessage(address=address, topic=topic, dedup_key=dedup_key, detail=detail)
