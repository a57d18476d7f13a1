"""Model vendors: each vendor's own library against a server that imitates its API, with everything
that can go wrong."""

import contextlib
import json
import socket
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart

from fake_vendors.request_shapes import find_misfits
from fake_vendors.server import VENDOR_APIS, Vendors, serve_vendors
from fake_vendors.troubles import (
    BadArguments,
    BreakMidway,
    ContextFull,
    CutInCall,
    Empty,
    Hang,
    HangMidway,
    Refusal,
    Say,
    Status,
    Trouble,
    UnknownTool,
)
from osiris.agents.models import message_conversion
from osiris.agents.models.model_call import LONGEST_PAUSE
from osiris.agents.models.pricing import price_usage
from osiris.agents.models.registry import VENDORS, Access, ModelRegistry
from osiris.config.http_server import serve_app
from osiris.config.settings import Settings
from osiris.core.errors import Refused, RunEnded, Unavailable
from osiris.core.ports.models import DeltaKind, Halted, Message, ToolCall, ToolSpec
from osiris.core.work import Usage
from osiris.queue import serialization

STRING = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
TOOLS = [
    ToolSpec(name=name, description=f"{name} it", parameters=STRING)
    for name in ("read_file", "list_dir")
]
BOTH = {
    "say": "I look: é 😀.",
    "call": {"read_file": {"path": 'a "b" é.py'}, "list_dir": {"path": "."}},
}
ONE = {"say": "On.", "call": {"read_file": {"path": "c.py"}}}
SCRIPT = {"runs": [{"steps": [BOTH, ONE, ONE, ONE]}]}
BEGIN = [
    Message(role="system", text="You are an engineer. " * 40),
    Message(role="user", text="The brief."),
]

SHORT_PATIENCE = 5  # seconds; a busy machine needs one or two for a reply

every_vendor = pytest.mark.parametrize("vendor", tuple(VENDOR_APIS))


def create_registry(
    vendors: Vendors, vendor: str, model: str = "", **options: Any
) -> ModelRegistry:
    environ = vendors.build_environ(vendor)
    name = vendor.upper().replace("-", "_")
    access = Access(
        key=options.pop("key", environ[f"{name}_API_KEY"]), url=environ[f"{name}_BASE_URL"]
    )
    return ModelRegistry(
        model or environ["OSIRIS_MODEL"], {vendor: access}, **{"patience": 30.0, **options}
    )


def list_hang_options(trouble: Trouble) -> dict[str, Any]:
    """Return the options of a registry that does not wait long for a reply that never comes."""
    return {"patience": SHORT_PATIENCE} if isinstance(trouble, Hang | HangMidway) else {}


class Conversation:
    """A conversation that continues as a run does; between two steps it is stored as JSON."""

    def __init__(self, vendors: Vendors, registry: ModelRegistry) -> None:
        self.vendors = vendors
        self.registry = registry
        self.transcript = list(BEGIN)
        self.deltas = list[tuple[DeltaKind, str]]()

    async def take_step(self, *troubles: Trouble) -> Message:
        self.vendors.troubles[:] = troubles
        self.deltas.clear()
        stored = [
            serialization.load_message(json.loads(json.dumps(serialization.dump_message(message))))
            for message in self.transcript
        ]
        model = await self.registry.select()
        reply = await model.reply(
            stored, TOOLS, lambda kind, text: self.deltas.append((kind, text))
        )
        self.transcript += [
            reply,
            *(Message(role="tool", text=f"of {call.name}", call=call.id) for call in reply.calls),
        ]
        return reply

    def list_deltas(self, kind: DeltaKind) -> str:
        return "".join(text for delta_kind, text in self.deltas if delta_kind == kind)


@contextlib.asynccontextmanager
async def start_conversation(vendor: str, **options: Any) -> AsyncIterator[Conversation]:
    async with serve_vendors(SCRIPT) as vendors:
        registry = create_registry(vendors, vendor, **options)
        await registry.probe_model()
        yield Conversation(vendors, registry)
        await registry.close()


@every_vendor
async def test_a_reply_comes_in_pieces_and_goes_back_as_the_vendor_said_it(vendor: str):
    async with start_conversation(vendor) as conversation:
        first = await conversation.take_step()
        assert (first.text, first.end, first.model) == (
            BOTH["say"],
            "",
            conversation.vendors.build_environ(vendor)["OSIRIS_MODEL"],
        )
        assert {call.name: dict(call.args) for call in first.calls} == BOTH["call"]
        assert conversation.list_deltas("text") == first.text
        assert all(call.name in conversation.list_deltas("call") for call in first.calls)
        # OpenAI shows its thoughts to verified organisations only
        assert conversation.list_deltas("thinking") or vendor == "openai"
        assert len([kind for kind, _ in conversation.deltas if kind == "text"]) > 1
        await conversation.take_step()  # the server requires every signature, verbatim
        await conversation.take_step()


@every_vendor
async def test_tokens_are_counted_and_priced_as_far_as_a_price_is_known(vendor: str):
    async with start_conversation(vendor) as conversation:
        first = await conversation.take_step()
        second = await conversation.take_step()
        assert 0 < first.usage.output < first.usage.input
        assert second.usage.cached > 0.8 * first.usage.input
        if vendor == "openai-compatible":
            assert second.usage.usd is None
        else:
            assert 0 < (second.usage.usd or 0) < 0.01


@every_vendor
async def test_what_was_said_before_is_asked_again_byte_by_byte(vendor: str):
    async with start_conversation(vendor) as conversation:
        for _ in range(4):
            await conversation.take_step()
        bodies = [request.body for request in conversation.vendors.requests[1:]]
        for field in ("messages", "input", "contents"):
            parts = [
                [_dump_without_cache_marks(part) for part in body.get(field, [])] for body in bodies
            ]
            for earlier, later in pairwise(parts):
                assert later[: len(earlier)] == earlier


def _dump_without_cache_marks(part: Any) -> str:
    """Return a part as JSON, without the marks for the cache. They move on with each request, and
    are not content."""
    if isinstance(part, dict):
        part = {
            key: _dump_without_cache_marks(value)
            for key, value in part.items()
            if key != "cache_control"
        }
    elif isinstance(part, list):
        part = [_dump_without_cache_marks(value) for value in part]
    return json.dumps(part)


@every_vendor
@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (Status(429, retry_after=7), "asks for a pause"),
        (Status(500), "has trouble"),
        (Status(503), "has trouble"),
        (Status(529), "has trouble"),
        (Hang(), f"said nothing for {SHORT_PATIENCE} s and was cut off"),
    ],
)
async def test_what_may_pass_is_waited_for(vendor: str, trouble: Trouble, message: str):
    async with start_conversation(vendor, **list_hang_options(trouble)) as conversation:
        request_count = len(conversation.vendors.requests)
        with pytest.raises(Unavailable, match=message) as outage:
            await conversation.take_step(trouble)
        assert (
            len(conversation.vendors.requests) == request_count + 1
        )  # no library retries by itself
        if isinstance(trouble, Status) and trouble.code == 429 and vendor != "google":
            assert outage.value.retry_in == 7
        await conversation.take_step()


@every_vendor
async def test_a_vendor_that_is_not_there_is_waited_for(vendor: str):
    registry = ModelRegistry(
        f"{vendor}:x", {vendor: Access(key="k", url="http://127.0.0.1:9/v1")}, patience=1
    )
    with pytest.raises(Unavailable, match="cannot be reached"):
        await registry.probe_model()
    await registry.close()


@every_vendor
@pytest.mark.parametrize("trouble", [BreakMidway(), HangMidway()])
async def test_a_stream_that_breaks_is_asked_for_once_more(vendor: str, trouble: Trouble):
    async with start_conversation(vendor, **list_hang_options(trouble)) as conversation:
        reply = await conversation.take_step(trouble)
        assert {call.name: dict(call.args) for call in reply.calls} == BOTH["call"]
        kinds = [kind for kind, _ in conversation.deltas]
        assert kinds.count("restart") == 1
        text_after_restart = "".join(
            text for kind, text in conversation.deltas[kinds.index("restart") :] if kind == "text"
        )
        assert text_after_restart == BOTH["say"]
        await conversation.take_step()


@every_vendor
async def test_a_stream_that_breaks_twice_is_waited_for(vendor: str):
    async with start_conversation(vendor) as conversation:
        with pytest.raises(Unavailable, match=r"broke off"):
            await conversation.take_step(BreakMidway(), BreakMidway())
        await conversation.take_step()


@every_vendor
async def test_arguments_that_cannot_be_read_are_no_call(vendor: str):
    async with start_conversation(vendor) as conversation:
        reply = await conversation.take_step(BadArguments("read_file", '{"path": '))
        [call] = reply.calls
        # Google sends arguments as objects: these can be parsed, and the tool refuses them
        if vendor == "google":
            assert (call.broken, "path" in call.args) == ("", False)
        else:
            assert "not a JSON object" in call.broken
        await conversation.take_step()


@every_vendor
async def test_a_call_that_was_cut_is_no_call(vendor: str):
    async with start_conversation(vendor) as conversation:
        reply = await conversation.take_step(CutInCall("read_file", '{"path": "a'))
        assert reply.end == "cut"
        assert ["cut at its greatest length" in call.broken for call in reply.calls] in ([True], [])
        if not reply.calls:
            conversation.transcript.append(Message(role="user", text="Go on."))
        await conversation.take_step()


@every_vendor
@pytest.mark.parametrize(
    ("trouble", "end", "calls"),
    [
        (Empty(), "", 0),
        (Refusal("I would rather not."), "refused", 0),
        (Say("Well."), "", 0),
        (UnknownTool("x"), "", 1),
    ],
)
async def test_a_reply_that_does_nothing_can_be_answered(
    vendor: str, trouble: Trouble, end: str, calls: int
):
    async with start_conversation(vendor) as conversation:
        reply = await conversation.take_step(trouble)
        assert (reply.end, len(reply.calls)) == (end, calls)
        if not calls:
            conversation.transcript.append(Message(role="user", text="Use a tool."))
        await conversation.take_step()


@every_vendor
async def test_a_conversation_that_is_too_long_is_sent_by_half_and_then_waits_for_another_model(
    vendor: str,
):
    async with start_conversation(vendor) as conversation:
        await conversation.take_step(ContextFull())
        with pytest.raises(RunEnded) as end:
            await conversation.take_step(ContextFull(), ContextFull())
        assert "no longer fits into the window of" in end.value.outcome.reason
        assert isinstance(end.value.outcome, Halted)


@every_vendor
@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (Status(401), "the model refused the key: the operator's key or address for {} is wrong"),
        (Status(402), "the operator's account at {} has no credit left"),
        (Status(400, "that is not lawful"), "{}:{} refused the request: that is not lawful"),
    ],
)
async def test_what_will_not_pass_halts_the_run(vendor: str, trouble: Trouble, reason: str):
    async with start_conversation(vendor) as conversation:
        with pytest.raises(RunEnded) as end:
            await conversation.take_step(trouble)
        name = conversation.vendors.build_environ(vendor)["OSIRIS_MODEL"].partition(":")[2]
        assert end.value.outcome == Halted(reason=reason.format(vendor, name))


@every_vendor
@pytest.mark.parametrize(
    ("model", "message"), [("missing", "there is no model"), ("toolless", "tools")]
)
async def test_a_model_that_cannot_do_the_work_is_refused_by_a_probe(
    vendor: str, model: str, message: str
):
    async with serve_vendors(SCRIPT) as vendors:
        registry = create_registry(vendors, vendor, f"{vendor}:{model}")
        with pytest.raises(Refused, match=message):
            await registry.probe_model()
        assert message in await registry.why_unavailable(f"{vendor}:{model}")
        with pytest.raises(RunEnded) as end:
            await (await registry.select()).reply(BEGIN, TOOLS)
        assert isinstance(end.value.outcome, Halted)
        await registry.close()


@pytest.mark.parametrize(
    "vendor", [vendor for vendor in VENDOR_APIS if vendor != "openai-compatible"]
)
async def test_a_wrong_key_is_said_without_the_key(vendor: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    key = "sk-wrong-canary-0123456789abcdef"
    async with serve_vendors(SCRIPT) as vendors:
        registry = create_registry(vendors, vendor, key=key)
        with pytest.raises(Refused, match="the model refused the key") as refused:
            await registry.probe_model()
        assert not any(
            key[n : n + 12] in f"{refused.value} {caplog.text}" for n in range(0, len(key) - 12, 4)
        )
        await registry.close()


async def test_words_of_a_vendor_are_shown_without_secrets():
    async with start_conversation(
        "anthropic", hide=lambda text: text.replace("s3cret", "***")
    ) as conversation:
        with pytest.raises(RunEnded) as end:
            await conversation.take_step(Status(400, "your key s3cret is odd"))
        assert "your key *** is odd" in end.value.outcome.reason


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("", "no model is configured"),
        ("nobody:x", "there is no model 'nobody:x' here; configured are: anthropic:…"),
        ("anthropic:", "there is no model 'anthropic:' here"),
        (
            "openai:gpt-5",
            "because OPENAI_API_KEY is not set; configured are: anthropic:…",
        ),
        (
            "openai-compatible:x",
            "because OPENAI_COMPATIBLE_BASE_URL is not set; configured are: anthropic:…",
        ),
    ],
)
async def test_what_is_not_configured_is_refused_with_what_is(model: str, message: str):
    with pytest.raises(Refused) as refused:
        # the model that was asked for, and may lack its key, is the operator's own
        await ModelRegistry(model, {"anthropic": Access(key="k")}).select()
    assert message in str(refused.value)


def test_each_vendor_names_a_setting_that_exists():
    assert {vendor.setting.lower() for vendor in VENDORS.values()} <= set(Settings.model_fields)


async def test_only_the_operator_chooses_a_script():
    with pytest.raises(Refused, match="there is no model 'scripted:/etc/passwd' here"):
        await ModelRegistry("", {"anthropic": Access(key="k")}).select("scripted:/etc/passwd")


@pytest.mark.parametrize("order", [tuple(VENDOR_APIS), tuple(reversed(VENDOR_APIS))])
async def test_a_conversation_goes_on_at_another_vendor(order: tuple[str, ...]):
    async with serve_vendors(SCRIPT) as vendors:
        transcript: list[Message] = list(BEGIN)
        for vendor in order:
            registry = create_registry(vendors, vendor)
            reply = await (await registry.select()).reply(transcript, TOOLS)
            transcript += [
                reply,
                *(Message(role="tool", text="done", call=call.id) for call in reply.calls),
            ]
            await registry.close()
        assert [find_misfits(request) for request in vendors.requests] == [[]] * 8


async def test_ids_and_names_that_one_vendor_makes_up_go_to_no_other():
    call = ToolCall(id="functions.read_file:0", name="read file<|x|>", args={"path": "a"})
    reply = Message(
        role="assistant",
        text="",
        calls=(call,),
        model="openai-compatible:kimi",
        state={"kind": "response"},
    )
    transcript = [*BEGIN, reply, Message(role="tool", text="no such tool", call=call.id)]
    async with serve_vendors({"runs": [{"steps": [ONE, ONE]}]}) as vendors:
        registry = create_registry(vendors, "anthropic")
        await (await registry.select()).reply(transcript, TOOLS)
        sent = json.dumps(vendors.requests[-1].body["messages"])
        assert sent.count("functions_read_file_0") == 2
        assert "read_file__x__" in sent
        await registry.close()


async def test_half_a_character_poisons_nothing():
    half = ModelResponse(
        parts=[
            TextPart("cut: \ud83d"),
            ToolCallPart("read_file", {"path": "\udc00"}, tool_call_id="c"),
        ]
    )
    message = message_conversion.convert_response(
        half, "openai-compatible:x", lambda usage, written: usage
    )
    assert (message.text, dict(message.calls[0].args)) == ("cut: ?", {"path": "?"})
    json.dumps(serialization.dump_message(message)).encode()


@pytest.mark.parametrize("vendor", ["anthropic", "openai", "google"])
def test_counts_that_cannot_be_right_have_no_price(vendor: str):
    model = VENDOR_APIS[vendor].model
    assert price_usage(vendor, model, "", Usage(input=10, cached=500, output=1), 700).usd is None


async def test_a_pause_that_a_vendor_wants_is_bounded():
    async with start_conversation("anthropic") as conversation:
        with pytest.raises(Unavailable) as outage:
            await conversation.take_step(Status(429, retry_after=900_000))
        assert outage.value.retry_in == LONGEST_PAUSE


async def test_a_reply_that_ends_for_a_reason_of_the_servers_own_is_taken():
    call = {
        "index": 0,
        "id": "c",
        "type": "function",
        "function": {"name": "ready", "arguments": '{"word": "yes"}'},
    }
    chunks = [
        {"delta": {"role": "assistant", "tool_calls": [call]}},
        {"delta": {}, "finish_reason": "eos_token"},
    ]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        row = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        frames = [
            f"data: {json.dumps({**row, 'choices': [{'index': 0, **chunk}]})}\n\n"
            for chunk in chunks
        ]
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send(
            {"type": "http.response.body", "body": "".join([*frames, "data: [DONE]\n\n"]).encode()}
        )

    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    async with serve_app(app, listener, grace=1):
        registry = ModelRegistry(
            "openai-compatible:m", {"openai-compatible": Access(key="", url=address)}, patience=2
        )
        await registry.probe_model()
        await registry.close()
