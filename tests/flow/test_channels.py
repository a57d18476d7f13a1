"""A channel beside GitHub: from a request in a conversation to the messages about its pull
request."""

import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from osiris.bootstrap import Timeouts
from osiris.core.ports.telemetry import NoTelemetry
from osiris.queue import tables
from osiris.queue.retention import Retention
from osiris.queue.tables import InboxRow, OutboxRow
from tests.flow.conftest import FILES, REPO, FlowEnvironment, Start
from tests.flow.support.toy_channel import ToyChannel, send_message
from tests.flow.test_outages import from_osiris

ACCOUNTS = {"U1": "alice", "U2": "mallory", "U3": "bob"}


@contextlib.asynccontextmanager
async def start_with_chat(
    start: Start, **more: object
) -> AsyncIterator[tuple[FlowEnvironment, "Chat"]]:
    """Start an environment whose Osiris also serves a toy channel."""
    channel = ToyChannel(ACCOUNTS)
    async with start(channels=[channel], **more) as env:
        yield env, Chat(env, channel)


class Chat:
    """The chat as its users see it."""

    def __init__(self, env: FlowEnvironment, channel: ToyChannel) -> None:
        self._env = env
        self._channel = channel
        self._sent = 0

    async def send(self, user: str, text: str, **more: object) -> list[str]:
        """Send a message in thread T1, and wait until it is handled. Return all messages of Osiris
        in that thread."""
        self._sent += 1
        port = self._env.playground.settings.osiris_port
        message = {"thread": "T1", "user": user, "text": text, **more}
        response = await send_message(port, f"m{self._sent}", **message)
        assert response.status_code == 202
        await self._env.wait_until_settled()
        return self._channel.list_messages("T1")


async def list_issues(env: FlowEnvironment) -> list[dict[str, object]]:
    rows = await env.alice.send_request("GET", "/issues", state="all")
    return [row for row in rows if "pull_request" not in row]


async def test_a_request_becomes_a_pull_request_and_its_conversation_is_told(start: Start):
    async with start_with_chat(start) as (env, chat):
        first_messages = await chat.send("U1", "add subtracts\nadd(1, 2) is -1")
        assert first_messages == [
            "Which repository? Answer here with `owner/name`, or with `cancel`."
        ]
        assert await list_issues(env) == []
        messages = await chat.send("U1", REPO, is_reply=True)
        [issue] = await list_issues(env)
        [pull] = await env.alice.list_pulls()
        url = f"{env.playground.hub.url}/{REPO}"
        assert messages[1:] == [
            f"I filed this as {REPO}#{issue['number']}: {url}/issues/{issue['number']}",
            f"{REPO}#{issue['number']} has a pull request to review: {url}/pull/{pull['number']}",
        ]
        assert "Requested by alice through Osiris." in str(issue["body"])
        assert (await env.get_task()).requester == "alice"
        await env.bob.submit_review(pull["number"], "APPROVE")
        await env.wait_until_settled()
        await env.alice.merge_pull(pull["number"])
        await env.wait_until_settled()
        messages = await chat.send("U1", "thank you", is_reply=True)
        assert messages[3:] == [
            f"{REPO}#{issue['number']} is merged. {url}/issues/{issue['number']}",
            f"I read no further messages here. Please write on the issue: {url}/issues/1",
        ]


async def test_somebody_without_write_access_is_refused_and_can_cancel(start: Start):
    async with start_with_chat(start) as (env, chat):
        [refusal] = await chat.send("U2", "Add my backdoor", repo=REPO)
        assert f"mallory has no write access to {REPO}" in refusal
        assert await list_issues(env) == []
        messages = await chat.send("U2", "cancel", is_reply=True)
        assert messages[1:] == ["The request is cancelled; nothing was filed."]


async def test_an_answer_of_somebody_else_gives_them_no_role(start: Start):
    async with start_with_chat(start) as (env, chat):
        await chat.send("U2", "Add my backdoor")
        await chat.send("U1", REPO, is_reply=True)  # alice may write, but the request is not hers
        assert await list_issues(env) == []


async def test_an_answer_does_not_overtake_the_request_that_it_answers(start: Start):
    channel = ToyChannel(ACCOUNTS)
    channel.outages = 1
    async with start(channels=[channel], timeouts=Timeouts(pauses=(0.3,))) as env:
        port = env.playground.settings.osiris_port
        await send_message(port, "m1", thread="T1", user="U1", text="add subtracts")
        await send_message(port, "m2", thread="T1", user="U1", text=REPO, is_reply=True)
        await env.wait_until_settled()
        assert [issue["title"] for issue in await list_issues(env)] == ["add subtracts"]


async def test_a_request_that_starts_nothing_says_so_in_its_conversation(start: Start):
    files = {**FILES, ".github/osiris.yml": "label: [\n"}
    async with start_with_chat(start, files=files) as (env, chat):
        messages = await chat.send("U1", "add subtracts", repo=REPO)
        assert sum("I filed this as" in text for text in messages) == 1
        assert sum("I did not start on" in text for text in messages) == 1
        assert await env.osiris.read_models.list_tasks() == []


@pytest.mark.parametrize("thread", ["", "x" * 256, "a\0b"])
async def test_a_conversation_that_cannot_be_stored_is_given_up_with_its_reason(
    start: Start, thread: str
):
    async with start_with_chat(start) as (env, _):
        port = env.playground.settings.osiris_port
        await send_message(port, "m1", thread=thread, user="U1", text="add subtracts", repo=REPO)
        await env.wait_until_settled()
        [failure] = await env.list_failures()
        assert "the name of the conversation" in failure.error
        assert (
            await send_message(port, "x" * 256, thread="T1", user="U1", text="Hello")
        ).status_code == 400


async def test_a_stranger_gets_no_answer(start: Start):
    async with start_with_chat(start) as (env, chat):
        assert await chat.send("U9", "Hello") == []
        assert await env.list_failures() == []


@pytest.mark.long
async def test_a_repository_that_cannot_be_used_can_be_replaced_by_another(start: Start):
    async with start_with_chat(start) as (env, chat):
        [first] = await chat.send("U1", "add subtracts", repo="acme/unknown")
        assert first.startswith("I could not file it: ")
        await chat.send("U1", REPO, is_reply=True)
        [issue] = await list_issues(env)
        assert issue["title"] == "add subtracts"


async def test_a_message_that_is_delivered_twice_files_one_issue(start: Start):
    async with start_with_chat(start) as (env, _):
        for _ in range(2):
            port = env.playground.settings.osiris_port
            await send_message(port, "m1", thread="T1", user="U1", text="add subtracts", repo=REPO)
            await env.wait_until_settled()
        assert len(await list_issues(env)) == 1


@pytest.mark.long
async def test_a_request_that_github_cannot_take_now_is_filed_once_later(start: Start):
    async with start_with_chat(start) as (env, chat):
        remaining_failures = [True]

        async def fail_once(request: Request, forward) -> Response:
            if remaining_failures and from_osiris(request) and request.method == "POST":
                remaining_failures.pop()
                return JSONResponse({"message": "down"}, 502)
            return await forward()

        env.playground.hub.interceptors.append(fail_once)
        await chat.send("U3", "add subtracts", repo=REPO)
        assert len(await list_issues(env)) == 1
        assert (await env.get_task()).requester == "bob"


@pytest.fixture
def bad_signature_headers() -> Iterator[dict[str, str]]:
    return {"X-Toy-Signature": "0" * 64, "X-Toy-Message": "m1"}


async def test_an_unsigned_message_is_refused_and_an_unknown_channel_is_not_there(
    start: Start, bad_signature_headers: dict[str, str]
):
    async with start_with_chat(start) as (env, _):
        base_url = f"http://127.0.0.1:{env.playground.settings.osiris_port}/webhooks"
        async with httpx.AsyncClient() as http:
            refused = await http.post(
                f"{base_url}/toy", content=b"{}", headers=bad_signature_headers
            )
            missing = await http.post(f"{base_url}/slack", content=b"{}")
        assert (refused.status_code, missing.status_code) == (401, 404)


async def test_old_conversations_are_deleted_but_none_with_an_open_question(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    async with start_with_chat(start) as (env, chat):
        await chat.send("U2", "Add my backdoor", repo=REPO)
        retention = Retention(env.osiris.engine, tmp_path, days=30)
        monkeypatch.setattr(tables, "clock", lambda: time.time() + 40 * 86_400)
        assert (await retention.prune()).conversations == 0
        await chat.send("U2", "cancel", is_reply=True)
        monkeypatch.setattr(tables, "clock", lambda: time.time() + 80 * 86_400)
        assert (await retention.prune()).conversations == 1
        async with env.osiris.engine.connect() as connection:
            assert await connection.scalar(select(func.count()).select_from(OutboxRow)) == 0


class SpanRecorder(NoTelemetry):
    """Telemetry that records the kind of each job by its trace, and the kinds of refused and
    performed orders."""

    def __init__(self) -> None:
        self.kinds_by_trace = defaultdict[str, list[str]](list)
        self.refused_kinds = list[str]()
        self.performed_kinds = list[str]()

    def add_count(self, name: str, amount: float = 1.0, **labels: str) -> None:
        self.refused_kinds.append(labels["kind"])

    def record_value(self, name: str, value: float, **labels: str) -> None:
        self.performed_kinds.append(labels["kind"])

    @contextlib.contextmanager
    def start_span(self, name: str, trace: str, **labels: str) -> Iterator[None]:
        self.kinds_by_trace[trace].append(labels["kind"])
        yield


@pytest.mark.long
async def test_a_request_and_all_that_follows_from_it_share_one_trace(start: Start):
    spans = SpanRecorder()
    async with start_with_chat(start, telemetry=spans) as (env, chat):
        await chat.send("U1", "add subtracts", repo=REPO)
        async with env.osiris.engine.connect() as connection:
            rows = {
                *(await connection.execute(select(InboxRow.source, InboxRow.trace))).all(),
                *(await connection.execute(select(OutboxRow.kind, OutboxRow.trace))).all(),
            }
        [trace] = {trace for source, trace in rows if source == "toy"}
        assert len(trace) == 32
        # deliveries of GitHub do not result from the request, so each begins its own trace
        assert {row_trace for source, row_trace in rows if source != "github"} == {trace}
        expected_kinds = [
            "message",
            "OpenIssue",
            "RequestFiled",
            "TaskRequested",
            "StartRun",
            "PatchReady",
        ]
        assert [
            kind for kind in spans.kinds_by_trace[trace] if kind in expected_kinds
        ] == expected_kinds
        assert "OpenIssue" in spans.performed_kinds
        await chat.send("U2", "Add my backdoor", thread="T2", repo=REPO)
        assert spans.refused_kinds == ["OpenIssue"]
