"""Each trouble as the vendor's own SDK reports it; afterwards the script continues."""

import asyncio
import logging

import anthropic
import google.genai.errors
import httpx2
import openai
import pytest

from fake_vendors import troubles
from fake_vendors.server import serve_vendors
from tests.fake_vendors.clients import open_client

STATUSES = {
    ("anthropic", 400): (anthropic.BadRequestError, "invalid_request_error"),
    ("anthropic", 402): (anthropic.APIStatusError, "billing_error"),
    ("anthropic", 429): (anthropic.RateLimitError, "rate_limit_error"),
    ("anthropic", 500): (anthropic.InternalServerError, "api_error"),
    ("anthropic", 503): (anthropic.InternalServerError, "api_error"),
    ("anthropic", 529): (anthropic.InternalServerError, "overloaded_error"),
    ("openai", 400): (openai.BadRequestError, "invalid_request_error"),
    ("openai", 402): (openai.APIStatusError, "insufficient_quota"),
    ("openai", 429): (openai.RateLimitError, "rate_limit_exceeded"),
    ("openai", 500): (openai.InternalServerError, "server_error"),
    ("openai", 503): (openai.InternalServerError, "server_is_overloaded"),
    ("openai", 529): (openai.InternalServerError, "server_error"),
    ("google", 400): (google.genai.errors.ClientError, "INVALID_ARGUMENT"),
    ("google", 402): (google.genai.errors.ClientError, "FAILED_PRECONDITION"),
    ("google", 429): (google.genai.errors.ClientError, "RESOURCE_EXHAUSTED"),
    ("google", 500): (google.genai.errors.ServerError, "INTERNAL"),
    ("google", 503): (google.genai.errors.ServerError, "UNAVAILABLE"),
    ("google", 529): (google.genai.errors.ServerError, "UNKNOWN"),
    ("openai-compatible", 400): (openai.BadRequestError, "BadRequestError"),
    ("openai-compatible", 402): (openai.APIStatusError, "insufficient_quota"),
    ("openai-compatible", 429): (openai.RateLimitError, "rate_limit_exceeded"),
    ("openai-compatible", 500): (openai.InternalServerError, "InternalServerError"),
    ("openai-compatible", 503): (openai.InternalServerError, "service_unavailable_error"),
    ("openai-compatible", 529): (openai.InternalServerError, "InternalServerError"),
}
CONTEXT_ERRORS = {
    "anthropic": "prompt is too long: ",
    "openai": "context_length_exceeded",
    "google": "The input token count (1100000) exceeds the maximum number of tokens allowed",
    "openai-compatible": "This model's maximum context length is ",
}
STOP_REASONS = {
    "anthropic": {"": "end_turn", "call": "tool_use", "cut": "max_tokens", "refused": "refusal"},
    "openai": {"": "completed", "call": "completed", "cut": "incomplete", "refused": "completed"},
    "google": {"": "STOP", "call": "STOP", "cut": "MAX_TOKENS", "refused": "SAFETY"},
    "openai-compatible": {
        "": "stop",
        "call": "tool_calls",
        "cut": "length",
        "refused": "content_filter",
    },
}
TIMEOUTS = (anthropic.APITimeoutError, openai.APITimeoutError, httpx2.ReadTimeout)
CONNECTION_ERRORS = (
    anthropic.APIConnectionError,
    openai.APIConnectionError,
    httpx2.RemoteProtocolError,
)


def _format_error(error: Exception) -> str:
    return f"{error} {getattr(error, 'body', '')}"


async def _check_first_step(client):
    """Assert that the script's first step is played as if no trouble had occurred."""
    reply = await client.request_reply()
    assert reply.names == ["read_file", "run_command"]


@pytest.fixture
async def client(vendors, vendor):
    async with open_client(vendors, vendor, timeout=2) as client:
        client.add_message("add is wrong")
        yield client


@pytest.mark.parametrize(("vendor", "code"), STATUSES)
async def test_a_status_has_the_vendors_own_error(vendors, vendor, code, client):
    kind, name = STATUSES[vendor, code]
    vendors.troubles.append(troubles.Status(code))
    with pytest.raises(kind) as raised:
        await client.request_reply()
    assert name in _format_error(raised.value)
    assert (getattr(raised.value, "status_code", None) or raised.value.code) == code
    await _check_first_step(client)


async def test_a_status_can_have_another_name_or_another_sentence(vendors):
    async with open_client(vendors, "openai") as client:
        client.add_message("add is wrong")
        vendors.troubles += [
            troubles.Status(429, "insufficient_quota"),
            troubles.Status(400, "Not with me."),
        ]
        with pytest.raises(openai.RateLimitError, match="exceeded your current quota") as raised:
            await client.request_reply()
        assert raised.value.code == "insufficient_quota"
        with pytest.raises(openai.BadRequestError, match="Not with me") as raised:
            await client.request_reply()
        assert raised.value.code is None


async def test_a_pause_is_asked_for_where_the_vendor_says_it(vendors, vendor, client):
    vendors.troubles.append(troubles.Status(429, retry_after=7))
    with pytest.raises(Exception, match="429") as raised:
        await client.request_reply()
    after = raised.value.response.headers.get("retry-after")
    if vendor == "google":
        assert after is None
        assert raised.value.details["error"]["details"][0]["retryDelay"] == "7s"
    else:
        assert after == "7"


async def test_googles_daily_quota_is_told_from_its_rate(vendors):
    quota = "GenerateRequestsPerDayPerProjectPerModel-FreeTier"
    vendors.troubles.append(troubles.Status(429, quota))
    async with open_client(vendors, "google") as client:
        client.add_message("add is wrong")
        with pytest.raises(google.genai.errors.ClientError) as raised:
            await client.request_reply()
    [detail] = raised.value.details["error"]["details"]
    assert detail["violations"][0]["quotaId"] == quota


async def test_a_prompt_that_is_too_long_has_the_vendors_own_words(vendors, vendor, client):
    vendors.troubles.append(troubles.ContextFull())
    with pytest.raises(Exception, match="400") as raised:
        await client.request_reply()
    assert CONTEXT_ERRORS[vendor] in _format_error(raised.value)
    await _check_first_step(client)


@pytest.mark.parametrize("trouble", [troubles.Hang(), troubles.HangMidway()])
async def test_a_vendor_that_hangs_says_nothing_until_the_client_leaves(
    vendors, vendor, trouble, caplog
):
    caplog.set_level(logging.WARNING)
    vendors.troubles.append(trouble)
    async with open_client(vendors, vendor, timeout=0.5) as impatient_client:
        impatient_client.add_message("add is wrong")
        with pytest.raises(TIMEOUTS):
            await impatient_client.request_reply()
    async with open_client(vendors, vendor) as client:
        client.add_message("add is wrong")
        await _check_first_step(client)
    assert not caplog.records


async def test_a_reply_breaks_off_in_the_middle_of_its_call(vendors, vendor, client, caplog):
    caplog.set_level(logging.WARNING)
    vendors.troubles.append(troubles.BreakMidway())
    with pytest.raises(CONNECTION_ERRORS):
        await client.request_reply()
    await _check_first_step(client)
    assert not caplog.records


async def test_part_of_the_call_was_there_when_it_broke_off(vendors):
    vendors.troubles.append(troubles.BreakMidway())
    events = []
    with pytest.raises(httpx2.RemoteProtocolError):
        await _collect_events(vendors, events)
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    assert (
        "".join(delta.text for delta in deltas if delta.type == "text_delta")
        == "I look at both – first."
    )
    arguments = "".join(delta.partial_json for delta in deltas if delta.type == "input_json_delta")
    assert arguments
    assert '{"path":"src/\\"calc\\" – 漢字 🎉.py"}'.startswith(arguments)
    assert events[-1].type == "content_block_delta"


async def _collect_events(vendors, events):
    """Append Anthropic's raw events, one by one."""
    async with open_client(vendors, "anthropic") as client:
        request = {
            "model": client.model,
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "add is wrong"}],
        }
        async for event in await client.sdk.messages.create(**request, stream=True):
            events.append(event)


async def test_the_server_ends_while_a_client_waits(script, vendor, caplog):
    caplog.set_level(logging.WARNING)
    async with serve_vendors(script) as vendors, open_client(vendors, vendor) as client:
        client.add_message("add is wrong")
        vendors.troubles.append(troubles.Hang())
        with pytest.raises(TimeoutError):
            await _request_briefly(client)
    assert not caplog.records


async def _request_briefly(client):
    async with asyncio.timeout(0.05):
        await client.request_reply()


async def test_an_empty_reply_is_lawful(vendors, vendor, client):
    vendors.troubles.append(troubles.Empty())
    reply = await client.request_reply()
    assert (reply.text, reply.thinking, reply.calls, reply.stop) == (
        "",
        "",
        [],
        STOP_REASONS[vendor][""],
    )


async def test_a_refusal_is_told_as_the_vendor_does(vendors, vendor, client):
    vendors.troubles.append(troubles.Refusal("Not this."))
    reply = await client.request_reply()
    assert (reply.text, reply.calls, reply.stop) == (
        "Not this.",
        [],
        STOP_REASONS[vendor]["refused"],
    )
    client.add_message("It is ordinary work.")
    await _check_first_step(client)


async def test_words_without_a_call_are_no_step_of_the_script(vendors, vendor, client):
    vendors.troubles.append(troubles.Say("I would rather talk."))
    reply = await client.request_reply()
    assert (reply.text, reply.calls, reply.stop) == (
        "I would rather talk.",
        [],
        STOP_REASONS[vendor][""],
    )
    client.add_message("Use a tool.")
    await _check_first_step(client)


async def test_a_call_of_an_unknown_tool_is_no_step_of_the_script(vendors, vendor, client):
    vendors.troubles.append(troubles.UnknownTool("fly"))
    reply = await client.request_reply()
    assert (reply.names, reply.stop) == (["fly"], STOP_REASONS[vendor]["call"])
    client.add_answers([(id, name, "there is no tool fly") for id, name, _ in reply.calls])
    await _check_first_step(client)


@pytest.mark.parametrize("vendor", ["openai", "openai-compatible", "google"])
async def test_arguments_can_be_no_json(vendors, vendor, client):
    vendors.troubles.append(troubles.BadArguments("read_file", '{"path": '))
    reply = await client.request_reply()
    [(id, name, arguments)] = reply.calls
    assert (name, reply.stop) == ("read_file", STOP_REASONS[vendor]["call"])
    assert arguments == ({"unreadable": '{"path": '} if vendor == "google" else '{"path": ')
    client.add_answers([(id, name, "the arguments are no JSON")])
    await _check_first_step(client)


@pytest.mark.parametrize("vendor", ["openai", "openai-compatible", "google"])
async def test_a_reply_can_be_cut_in_a_calls_arguments(vendors, vendor, client):
    vendors.troubles.append(troubles.CutInCall("write_file", '{"path": "a.py", "text": "de'))
    reply = await client.request_reply()
    [(id, name, arguments)] = reply.calls
    assert (name, reply.stop) == ("write_file", STOP_REASONS[vendor]["cut"])
    assert arguments == ({"path": "a.py"} if vendor == "google" else '{"path": "a.py", "text": "de')
    client.add_answers([(id, name, "the call was cut")])
    await _check_first_step(client)


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (troubles.BadArguments("write_file", '{"path": "a.py", "text": "de'), "tool_use"),
        (troubles.CutInCall("write_file", '{"path": "a.py", "text": "de'), "max_tokens"),
    ],
)
async def test_anthropic_streams_arguments_that_never_end(vendors, trouble, reason):
    vendors.troubles.append(trouble)
    events = []
    await _collect_events(vendors, events)
    deltas = [event.delta for event in events if event.type == "content_block_delta"]
    assert (
        "".join(delta.partial_json for delta in deltas if delta.type == "input_json_delta")
        == trouble.arguments
    )
    assert [event.delta.stop_reason for event in events if event.type == "message_delta"] == [
        reason
    ]
    assert events[-1].type == "message_stop"


async def test_troubles_come_one_by_one(vendors, vendor, client):
    vendors.troubles += [troubles.Status(500), troubles.ContextFull()]
    for code in ("500", "400"):
        with pytest.raises(Exception, match=code):
            await client.request_reply()
    assert vendors.troubles == []
    await _check_first_step(client)
