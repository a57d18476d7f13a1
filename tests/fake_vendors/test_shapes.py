"""The check of request shapes: it finds requests that no SDK could have written."""

import copy
from typing import Any

import pytest

from fake_vendors.request_shapes import find_misfits
from fake_vendors.server import ReceivedRequest
from tests.fake_vendors.clients import open_client


@pytest.fixture
async def received_request(vendors, vendor) -> ReceivedRequest:
    """Provide a valid request that contains a reply and answers."""
    async with open_client(vendors, vendor) as client:
        client.add_message("add is wrong")
        reply = await client.request_reply()
        client.add_answers(
            [(id, name, "exit code 0 in 0.1 s\ndef add") for id, name, _ in reply.calls]
        )
        await client.request_reply()
    return vendors.requests[-1]


PATHS: dict[str, dict[str, list[Any]]] = {
    "anthropic": {
        "turn": ["messages", 1],
        "call": ["messages", 1, "content", 2],
        "answer": ["messages", 2, "content", 0],
        "tool": ["tools", 0],
    },
    "openai": {
        "turn": ["input", 2],
        "call": ["input", 3],
        "answer": ["input", 5],
        "tool": ["tools", 0],
    },
    "google": {
        "turn": ["contents", 1],
        "call": ["contents", 1, "parts", -1, "functionCall"],
        "answer": ["contents", 2, "parts", 0, "functionResponse"],
        "tool": ["tools", 0, "functionDeclarations", 0],
    },
    "openai-compatible": {
        "turn": ["messages", 2],
        "call": ["messages", 2, "tool_calls", 0, "function"],
        "answer": ["messages", 3],
        "tool": ["tools", 0, "function"],
    },
}
WRONG_VALUES = {
    ("anthropic", "call", "name"): 7,
    ("anthropic", "turn", "role"): "wizard",
    ("anthropic", "answer", "tool_use_id"): None,
    ("openai", "call", "arguments"): {"path": "a.py"},
    ("openai", "turn", "role"): "wizard",
    ("openai", "answer", "call_id"): 5,
    ("google", "call", "args"): '{"path": "a.py"}',
    ("google", "turn", "parts"): "Hello",
    ("google", "answer", "response"): "def add",
    ("openai-compatible", "call", "arguments"): {"path": "a.py"},
    ("openai-compatible", "turn", "role"): "wizard",
    ("openai-compatible", "answer", "content"): 5,
}
MISSING_FIELDS = {
    "anthropic": [
        ("call", "id"),
        ("call", "input"),
        ("answer", "tool_use_id"),
        ("tool", "input_schema"),
    ],
    "openai": [("call", "call_id"), ("answer", "output"), ("tool", "name")],
    "google": [],  # all fields of Google are optional
    "openai-compatible": [("call", "name"), ("answer", "tool_call_id"), ("tool", "name")],
}


def _get_part(body: Any, path: list[Any]) -> Any:
    for step in path:
        body = body[step]
    return body


def _copy_request(received_request: ReceivedRequest) -> ReceivedRequest:
    return ReceivedRequest(
        vendor=received_request.vendor,
        path=received_request.path,
        headers=received_request.headers,
        body=copy.deepcopy(received_request.body),
        began=received_request.began,
    )


async def test_what_an_sdk_wrote_has_no_misfits(received_request):
    assert find_misfits(received_request) == []


@pytest.mark.parametrize("part", [None, "turn", "call", "answer", "tool"])
async def test_an_unknown_field_is_found_anywhere(received_request, vendor, part):
    changed = _copy_request(received_request)
    _get_part(changed.body, PATHS[vendor][part] if part else [])["surprise"] = 1
    [misfit] = find_misfits(changed)
    assert "surprise" in misfit
    assert "no such field" in misfit


@pytest.mark.parametrize(("vendor", "part", "field"), WRONG_VALUES)
async def test_a_value_of_another_type_is_found(received_request, vendor, part, field):
    changed = _copy_request(received_request)
    _get_part(changed.body, PATHS[vendor][part])[field] = WRONG_VALUES[vendor, part, field]
    assert any(f".{field}: " in misfit for misfit in find_misfits(changed))


async def test_a_field_that_is_missing_is_found(received_request, vendor):
    for part, field in MISSING_FIELDS[vendor]:
        changed = _copy_request(received_request)
        del _get_part(changed.body, PATHS[vendor][part])[field]
        assert any(f".{field}: is missing" in misfit for misfit in find_misfits(changed))


async def test_a_signature_that_is_no_base64_is_found(vendors):
    body = {
        "contents": [{"role": "model", "parts": [{"text": "a", "thoughtSignature": "not base64!"}]}]
    }
    received_request = ReceivedRequest(vendor="google", path="/", headers={}, body=body, began=0)
    assert find_misfits(received_request) == [
        "body.contents[0].parts[0].thoughtSignature: is not base64"
    ]


async def test_a_body_that_is_no_object_is_a_misfit(vendor):
    assert find_misfits(
        ReceivedRequest(vendor=vendor, path="/", headers={}, body=None, began=0)
    ) == ["body: is no object"]
