"""Texts of the messages to conversations outside of GitHub, as functions of facts."""

from osiris.bot.github.comments import review_url
from osiris.bot.github.escaping import one_line
from osiris.core.effects import MessageTopic, SendMessage
from osiris.core.task import State, Task

_QUESTIONS = {
    MessageTopic.WHICH_REPOSITORY: (
        "Which repository? Answer here with `owner/name`, or with `cancel`."
    ),
    MessageTopic.UNCLEAR_REPOSITORY: (
        "That is not the name of a repository. Answer with `owner/name` alone, or with `cancel`."
    ),
    MessageTopic.BUSY: (
        "I did not take this request: the one before it in this conversation is not filed yet."
        " Finish that one, or make this one in a new conversation."
    ),
    MessageTopic.FILING: (
        "I am filing the request already, so I did not take this. Please write on its issue, which"
        " I will name here."
    ),
    MessageTopic.WITHDRAWN: "The request is cancelled; nothing was filed.",
}
_STATES = {
    State.DONE: "is merged",
    State.PAUSED: "is paused",
    State.FAILED: "could not be finished",
    State.CANCELLED: "was stopped",
    State.REJECTED: "was closed without merging",
}


def write_message(order: SendMessage, task: Task | None, github_url: str) -> str:
    """Return the text of a message in Markdown. `task` is the present task, if the order has one;
    links point to `github_url`."""
    if order.issue is None:
        return _write_about_request(order)
    issue = review_url(github_url, order.issue, None)
    match order.topic:
        case MessageTopic.FILED:
            return f"I filed this as {order.issue}: {issue}"
        case MessageTopic.NOT_STARTED:
            return f"I did not start on {order.issue}: {one_line(order.detail)}. {issue}"
        case MessageTopic.ELSEWHERE:
            return f"I read no further messages here. Please write on the issue: {issue}"
        case MessageTopic.PULL_OPENED:
            pull = review_url(github_url, order.issue, task.pull if task else None)
            return f"{order.issue} has a pull request to review: {pull}"
    return f"{order.issue} {_describe_state(task)}. {issue}"


def _write_about_request(order: SendMessage) -> str:
    if order.topic is MessageTopic.REFUSED:
        return (
            f"I could not file it: {one_line(order.detail)}. Answer with another repository as"
            " `owner/name`, or with `cancel`."
        )
    return _QUESTIONS[order.topic]


def _describe_state(task: Task | None) -> str:
    """Return what became of a task. It may have gone on since the message was ordered."""
    if task is None or task.state not in _STATES:
        return "goes on"
    reason = one_line(task.reason)
    return f"{_STATES[task.state]}: {reason}" if reason else _STATES[task.state]
