"""Conversion between our transcript and the messages of the model library (pydantic-ai).

It does not depend on a vendor.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    ModelResponseStreamEvent,
    PartDeltaEvent,
    PartStartEvent,
    SystemPromptPart,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.tools import ToolDefinition

from osiris.core.ports.models import Message, OnDelta, ToolCall, ToolSpec
from osiris.core.work import Usage

Price = Callable[[Usage, int], Usage]
"""(usage, tokens of it written to the vendor's cache) -> the usage with its price."""

_CUT = (
    "the reply was cut at its greatest length in the middle of this call, so nothing was done; do"
    " less in one call"
)
_NOT_JSON = "the arguments are not a JSON object, so nothing was done; call it once more"


def convert_transcript(transcript: Sequence[Message], vendor: str) -> list[ModelMessage]:
    """Return the transcript as requests and responses for a vendor.

    An empty reply is left out, because no vendor accepts one.
    """
    transcript = _normalize_transcript(transcript, vendor)
    names = {call.id: call.name for message in transcript for call in message.calls}
    found: list[ModelMessage] = []
    for message in transcript:
        if message.role == "assistant":
            if message.text or message.calls:
                found.append(_convert_reply(message))
        elif found and isinstance(found[-1], ModelRequest):
            found[-1].parts = [*found[-1].parts, _convert_part(message, names)]
        else:
            found.append(ModelRequest(parts=[_convert_part(message, names)]))
    return found


def _normalize_transcript(transcript: Sequence[Message], vendor: str) -> list[Message]:
    """Return the transcript with the replies of other vendors normalized: without their state, and
    with ids and names that every vendor accepts."""
    ids: dict[str, str] = {}
    found = []
    for message in transcript:
        if message.role == "assistant" and not message.model.startswith(f"{vendor}:"):
            ids |= {call.id: _sanitize_name(call.id) for call in message.calls}
            calls = (
                replace(call, id=ids[call.id], name=_sanitize_name(call.name))
                for call in message.calls
            )
            message = replace(message, calls=tuple(calls), state={})
        elif message.call in ids:
            message = replace(message, call=ids[message.call])
        found.append(message)
    return found


def _sanitize_name(name: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)[:64] or "_"


def _convert_part(message: Message, names: dict[str, str]) -> ModelRequestPart:
    match message.role:
        case "system":
            return SystemPromptPart(message.text)
        case "tool":
            return ToolReturnPart(
                tool_name=names[message.call], content=message.text, tool_call_id=message.call
            )
        case _:
            return UserPromptPart(message.text)


def _convert_reply(message: Message) -> ModelResponse:
    """Return a reply in its vendor's own form, or, if that is not known, built from its text and
    calls."""
    if message.state:
        [response] = ModelMessagesTypeAdapter.validate_python([message.state])
        if isinstance(response, ModelResponse):
            return response
    text: list[ModelResponsePart] = [TextPart(message.text)] if message.text else []
    calls = [
        ToolCallPart(call.name, dict(call.args), tool_call_id=call.id) for call in message.calls
    ]
    return ModelResponse(parts=[*text, *calls])


def convert_tools(tools: Sequence[ToolSpec]) -> ModelRequestParameters:
    """Return the tools as request parameters of the model library."""
    return ModelRequestParameters(
        function_tools=[
            ToolDefinition(
                name=t.name, description=t.description, parameters_json_schema=dict(t.parameters)
            )
            for t in tools
        ]
    )


def convert_response(response: ModelResponse, model: str, price: Price) -> Message:
    """Return a vendor's reply as a message of the transcript, from `model`."""
    [state] = ModelMessagesTypeAdapter.dump_python([response], mode="json", exclude_none=True)
    state.pop("provider_url", None)  # the operator set it, not the vendor
    if (whole := _drop_half_characters(state)) != state:
        state = whole
        response = cast(ModelResponse, ModelMessagesTypeAdapter.validate_python([whole])[0])
    cut = response.finish_reason == "length"
    parts = [part for part in response.parts if isinstance(part, ToolCallPart)]
    calls = [_convert_call(part, cut=cut and part is parts[-1]) for part in parts]
    usage = response.usage
    tokens = Usage(
        input=usage.input_tokens, cached=usage.cache_read_tokens, output=usage.output_tokens
    )
    return Message(
        role="assistant",
        text="\n\n".join(part.content for part in response.parts if isinstance(part, TextPart)),
        calls=tuple(calls),
        model=model,
        end="cut" if cut else "refused" if response.finish_reason == "content_filter" else "",
        usage=price(tokens, usage.cache_write_tokens),
        state=state,
    )


def _drop_half_characters(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state without halves of characters.

    A stream can cut a character in two, and a half can neither be stored nor sent.
    """
    whole: dict[str, Any] = json.loads(
        json.dumps(state, ensure_ascii=False).encode("utf-8", "replace")
    )
    return whole


def _convert_call(part: ToolCallPart, *, cut: bool) -> ToolCall:
    if cut:
        return ToolCall(id=part.tool_call_id, name=part.tool_name, args={}, broken=_CUT)
    try:
        args = part.args_as_dict(raise_if_invalid=True)
    except (ValueError, AssertionError):
        return ToolCall(id=part.tool_call_id, name=part.tool_name, args={}, broken=_NOT_JSON)
    return ToolCall(id=part.tool_call_id, name=part.tool_name, args=args)


def forward_event(event: ModelResponseStreamEvent, on_delta: OnDelta) -> None:
    """Pass a piece of a reply to `on_delta`."""
    match event:
        case (
            PartStartEvent(part=TextPart(content=text))
            | PartDeltaEvent(delta=TextPartDelta(content_delta=text))
        ):
            _forward_text(on_delta, "text", text)
        case PartStartEvent(part=ThinkingPart(content=text)):
            _forward_text(on_delta, "thinking", text)
        case PartDeltaEvent(delta=ThinkingPartDelta(content_delta=text)):
            _forward_text(on_delta, "thinking", text)
        case PartStartEvent(part=ToolCallPart(tool_name=name, args=args)):
            on_delta("call", f"\n{name} {_format_args(args)}")
        case PartDeltaEvent(delta=ToolCallPartDelta(args_delta=args)):
            _forward_text(on_delta, "call", _format_args(args))


def _forward_text(on_delta: OnDelta, kind: Any, text: str | None) -> None:
    if text:
        on_delta(kind, text)


def _format_args(args: Any) -> str:
    return args if isinstance(args, str) else json.dumps(args, ensure_ascii=False) if args else ""
