"""Clients for the tests: each vendor's own SDK behind one interface, which sends requests, reads
replies, answers calls, and makes deliberate mistakes."""

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from anthropic import AsyncAnthropic
from google import genai
from google.genai import types
from openai import AsyncOpenAI

NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""A context without certificates: reading them takes each client longer than the whole
conversation."""

SYSTEM = "You work on a repository."
TOOLS = {
    "read_file": {
        "type": "object",
        "properties": {"path": {"type": "string"}},
        "required": ["path"],
    },
    "run_command": {
        "type": "object",
        "properties": {"command": {"type": "string"}},
        "required": ["command"],
    },
}
READY = {
    "ready": {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
}


@dataclass(frozen=True, kw_only=True)
class SdkReply:
    """A reply as the SDK returns it. `calls` are (id, name, arguments); `cached` is the number of
    tokens read from the cache."""

    text: str
    thinking: str
    calls: list[tuple[str, str, Any]]
    stop: str
    input: int
    cached: int

    @property
    def names(self) -> list[str]:
        return [name for _, name, _ in self.calls]


class Anthropic:
    """A client of Anthropic. `uses_cache_marks` turns on automatic cache control."""

    vendor = "anthropic"
    uses_cache_marks = True

    def __init__(self, env: Mapping[str, str], model: str, timeout: float) -> None:
        key = env["ANTHROPIC_API_KEY"]
        url = env["ANTHROPIC_BASE_URL"]
        http = httpx2.AsyncClient(verify=NO_TLS)
        self.sdk = AsyncAnthropic(
            api_key=key, base_url=url, max_retries=0, timeout=timeout, http_client=http
        )
        self.model = model
        self.history = []
        self.tools = TOOLS

    def add_message(self, text: str) -> None:
        self.history.append({"role": "user", "content": text})

    async def request_reply(self, *, stream: bool = True) -> SdkReply:
        tools = [
            {"name": name, "description": name, "input_schema": schema}
            for name, schema in self.tools.items()
        ]
        request: Any = {
            "model": self.model,
            "max_tokens": 1000,
            "system": SYSTEM,
            "messages": self.history,
        }
        request |= {"tools": tools, "thinking": {"type": "adaptive"}}
        request |= {"cache_control": {"type": "ephemeral"}} if self.uses_cache_marks else {}
        if stream:
            async with self.sdk.messages.stream(**request) as stream_reply:
                message = await stream_reply.get_final_message()
        else:
            message = await self.sdk.messages.create(**request)
        self.history.append(
            {
                "role": "assistant",
                "content": [b.model_dump(exclude_none=True) for b in message.content],
            }
        )
        usage = message.usage
        return SdkReply(
            text="".join(block.text for block in message.content if block.type == "text"),
            thinking="".join(
                block.thinking for block in message.content if block.type == "thinking"
            ),
            calls=[
                (block.id, block.name, block.input)
                for block in message.content
                if block.type == "tool_use"
            ],
            stop=str(message.stop_reason),
            input=usage.input_tokens
            + usage.cache_read_input_tokens
            + usage.cache_creation_input_tokens,
            cached=usage.cache_read_input_tokens,
        )

    def add_answers(self, answers: list[tuple[str, str, str]]) -> None:
        results = [
            {"type": "tool_result", "tool_use_id": id, "content": text} for id, _, text in answers
        ]
        self.history.append({"role": "user", "content": results})

    def forget(self) -> None:
        """Remove the state from the last reply."""
        last_turn = self.history[-1]
        last_turn["content"] = [
            block for block in last_turn["content"] if block["type"] != "thinking"
        ]

    def blur(self) -> None:
        """Change the state of the last reply."""
        [thinking_block] = [
            block for block in self.history[-1]["content"] if block["type"] == "thinking"
        ]
        thinking_block["signature"] = thinking_block["signature"][::-1]

    def add_foreign_turn(self) -> None:
        """Add a turn of another vendor, and its answer."""
        tool_use = {
            "type": "tool_use",
            "id": "call_elsewhere",
            "name": "read_file",
            "input": {"path": "calc.py"},
        }
        self.history.append({"role": "assistant", "content": [tool_use]})
        self.add_answers([("call_elsewhere", "read_file", "def add")])

    async def close(self) -> None:
        await self.sdk.close()


class OpenAI:
    vendor = "openai"

    def __init__(self, env: Mapping[str, str], model: str, timeout: float) -> None:
        key = env["OPENAI_API_KEY"]
        url = env["OPENAI_BASE_URL"]
        http = httpx2.AsyncClient(verify=NO_TLS)
        self.sdk = AsyncOpenAI(
            api_key=key, base_url=url, max_retries=0, timeout=timeout, http_client=http
        )
        self.model = model
        self.history = []
        self.tools = TOOLS

    def add_message(self, text: str) -> None:
        self.history.append({"role": "user", "content": text})

    async def request_reply(self, *, stream: bool = True) -> SdkReply:
        tools = [
            {"type": "function", "name": name, "parameters": schema, "strict": False}
            for name, schema in self.tools.items()
        ]
        request: Any = {
            "model": self.model,
            "instructions": SYSTEM,
            "input": self.history,
            "tools": tools,
        }
        request |= {
            "store": False,
            "include": ["reasoning.encrypted_content"],
            "reasoning": {"summary": "auto"},
        }
        if stream:
            async with self.sdk.responses.stream(**request) as stream_reply:
                events = [event async for event in stream_reply]
            response = events[-1].response  # get_final_response() raises when it is incomplete
        else:
            response = await self.sdk.responses.create(**request)
        self.history += [
            item.model_dump(mode="json", by_alias=True, exclude_none=True)
            for item in response.output
        ]
        calls = [item for item in response.output if item.type == "function_call"]
        thoughts = [item for item in response.output if item.type == "reasoning"]
        return SdkReply(
            text=response.output_text or "".join(_list_refusals(response.output)),
            thinking="".join(part.text for item in thoughts for part in item.summary),
            calls=[(call.call_id, call.name, _parse_arguments(call.arguments)) for call in calls],
            stop=str(response.status),
            input=response.usage.input_tokens,
            cached=response.usage.input_tokens_details.cached_tokens,
        )

    def add_answers(self, answers: list[tuple[str, str, str]]) -> None:
        self.history += [
            {"type": "function_call_output", "call_id": id, "output": text}
            for id, _, text in answers
        ]

    def forget(self) -> None:
        self.history = [item for item in self.history if item.get("type") != "reasoning"]

    def blur(self) -> None:
        [reasoning_item] = [item for item in self.history if item.get("type") == "reasoning"]
        reasoning_item["encrypted_content"] = reasoning_item["encrypted_content"][::-1]

    def add_foreign_turn(self) -> None:
        call = {
            "type": "function_call",
            "call_id": "toolu_elsewhere",
            "name": "read_file",
            "arguments": "{}",
        }
        self.history.append(call)
        self.add_answers([("toolu_elsewhere", "read_file", "def add")])

    async def close(self) -> None:
        await self.sdk.close()


class Google:
    vendor = "google"

    def __init__(self, env: Mapping[str, str], model: str, timeout: float) -> None:
        options = types.HttpOptions(
            base_url=env["GOOGLE_BASE_URL"],
            timeout=int(timeout * 1000),
            retry_options=types.HttpRetryOptions(attempts=1),
            client_args={"verify": NO_TLS},
            async_client_args={"verify": NO_TLS},
        )
        self.sdk = genai.Client(api_key=env["GOOGLE_API_KEY"], http_options=options)
        self.model = model
        self.history = []
        self.tools = TOOLS

    def add_message(self, text: str) -> None:
        self.history.append(types.Content(role="user", parts=[types.Part(text=text)]))

    async def request_reply(self, *, stream: bool = True) -> SdkReply:
        functions = [
            types.FunctionDeclaration(name=name, parameters_json_schema=schema)
            for name, schema in self.tools.items()
        ]
        config = types.GenerateContentConfig(
            system_instruction=SYSTEM,
            tools=[types.Tool(function_declarations=functions)],
            thinking_config=types.ThinkingConfig(include_thoughts=True),
            automatic_function_calling=types.AutomaticFunctionCallingConfig(disable=True),
        )
        request: Any = {"model": self.model, "contents": self.history, "config": config}
        models = self.sdk.aio.models
        if stream:
            chunks = [chunk async for chunk in await models.generate_content_stream(**request)]
        else:
            chunks = [await models.generate_content(**request)]
        parts = [part for chunk in chunks for part in chunk.candidates[0].content.parts or []]
        self.history.append(types.Content(role="model", parts=parts))
        usage = chunks[-1].usage_metadata
        calls = [part.function_call for part in parts if part.function_call]
        return SdkReply(
            text="".join(part.text for part in parts if part.text and not part.thought),
            thinking="".join(part.text for part in parts if part.text and part.thought),
            calls=[(call.id, call.name, call.args) for call in calls],
            stop=chunks[-1].candidates[0].finish_reason.value,
            input=usage.prompt_token_count,
            cached=usage.cached_content_token_count or 0,
        )

    def add_answers(self, answers: list[tuple[str, str, str]]) -> None:
        responses = [
            types.FunctionResponse(id=id, name=name, response={"output": text})
            for id, name, text in answers
        ]
        parts = [types.Part(function_response=response) for response in responses]
        self.history.append(types.Content(role="user", parts=parts))

    def forget(self) -> None:
        for part in self.history[-1].parts:
            part.thought_signature = None

    def blur(self) -> None:
        for part in self.history[-1].parts:
            part.thought_signature = part.thought_signature and part.thought_signature[::-1]

    def add_foreign_turn(self) -> None:
        """Add a turn without an id, as an older client sends it, and its answer."""
        call = types.FunctionCall(name="read_file", args={"path": "calc.py"})
        self.history.append(types.Content(role="model", parts=[types.Part(function_call=call)]))
        response = types.FunctionResponse(name="read_file", response={"output": "def add"})
        self.history.append(
            types.Content(role="user", parts=[types.Part(function_response=response)])
        )

    async def close(self) -> None:
        await self.sdk.aio.aclose()
        self.sdk.close()


class Compatible:
    vendor = "openai-compatible"

    def __init__(self, env: Mapping[str, str], model: str, timeout: float) -> None:
        key = env["OPENAI_COMPATIBLE_API_KEY"]
        url = env["OPENAI_COMPATIBLE_BASE_URL"]
        http = httpx2.AsyncClient(verify=NO_TLS)
        self.sdk = AsyncOpenAI(
            api_key=key, base_url=url, max_retries=0, timeout=timeout, http_client=http
        )
        self.model = model
        self.history = [{"role": "system", "content": SYSTEM}]
        self.tools = TOOLS

    def add_message(self, text: str) -> None:
        self.history.append({"role": "user", "content": text})

    async def request_reply(self, *, stream: bool = True) -> SdkReply:
        functions = [{"name": name, "parameters": schema} for name, schema in self.tools.items()]
        tools = [{"type": "function", "function": function} for function in functions]
        request: Any = {"model": self.model, "messages": self.history, "tools": tools}
        if stream:
            options = {"stream_options": {"include_usage": True}}
            chunks = [
                chunk
                async for chunk in await self.sdk.chat.completions.create(
                    **request, **options, stream=True
                )
            ]
            message = _join_chunks(chunks)
            stop = chunks[-2].choices[0].finish_reason
            usage = chunks[-1].usage
        else:
            completion = await self.sdk.chat.completions.create(**request)
            message = completion.choices[0].message.to_dict()
            stop = completion.choices[0].finish_reason
            usage = completion.usage
        self.history.append(message)
        calls = [(call["id"], call["function"]) for call in message.get("tool_calls", ())]
        return SdkReply(
            text=message["content"] or "",
            thinking=message.get("reasoning_content", ""),
            calls=[
                (id, function["name"], _parse_arguments(function["arguments"]))
                for id, function in calls
            ],
            stop=stop,
            input=usage.prompt_tokens,
            cached=usage.prompt_tokens_details.cached_tokens,
        )

    def add_answers(self, answers: list[tuple[str, str, str]]) -> None:
        self.history += [
            {"role": "tool", "tool_call_id": id, "content": text} for id, _, text in answers
        ]

    def add_foreign_turn(self) -> None:
        function = {"name": "read_file", "arguments": "{}"}
        calls = [{"id": "toolu_elsewhere", "type": "function", "function": function}]
        self.history.append({"role": "assistant", "content": None, "tool_calls": calls})
        self.add_answers([("toolu_elsewhere", "read_file", "def add")])

    async def close(self) -> None:
        await self.sdk.close()


def _join_chunks(chunks: list[Any]) -> dict[str, Any]:
    """Return the message that consists of these chunks."""
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    calls: list[dict[str, Any]] = []
    for piece in (piece for delta in deltas for piece in delta.tool_calls or ()):
        if piece.index == len(calls):
            calls.append(
                {"id": piece.id, "type": "function", "function": {"name": piece.function.name}}
            )
            calls[-1]["function"]["arguments"] = ""
        calls[piece.index]["function"]["arguments"] += piece.function.arguments
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(delta.content or "" for delta in deltas),
    }
    if thinking := "".join(getattr(delta, "reasoning_content", "") for delta in deltas):
        message["reasoning_content"] = thinking
    return {**message, "tool_calls": calls} if calls else message


def _list_refusals(output: list[Any]) -> list[str]:
    parts = [part for item in output if item.type == "message" for part in item.content]
    return [part.refusal for part in parts if part.type == "refusal"]


def _parse_arguments(arguments: str) -> Any:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


CLIENTS: Mapping[str, Any] = {
    client.vendor: client for client in (Anthropic, OpenAI, Google, Compatible)
}


@asynccontextmanager
async def open_client(
    vendors: Any, vendor: str, *, model: str = "", key: str = "", timeout: float = 5
) -> AsyncIterator[Any]:
    """Open a client of a vendor's SDK that uses the fake vendors."""
    env = vendors.build_environ(vendor)
    if key:
        env |= {name: key for name in env if name.endswith("_API_KEY")}
    client = CLIENTS[vendor](env, model or env["OSIRIS_MODEL"].partition(":")[2], timeout)
    try:
        yield client
    finally:
        await client.close()
