"""A request that no SDK could have written is found."""

import copy
from typing import Any

import pytest

from fake_vendors.request_shapes import misfits
from fake_vendors.server import ReceivedRequest
from tests.fake_vendors.clients import talking


@pytest.fixture
async def asked(vendors, vendor) -> ReceivedRequest:
    """A lawful request with a reply and answers in it."""
    async with talking(vendors, vendor) as client:
        client.tell("add is wrong")
        said = await client.ask()
        client.answer([(id, name, "exit code 0 in 0.1 s\ndef add") for id, name, _ in said.calls])
        await client.ask()
    return vendors.requests[-1]


PLACES: dict[str, dict[str, list[Any]]] = {
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
WRONG = {
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
MISSING = {
    "anthropic": [
        ("call", "id"),
        ("call", "input"),
        ("answer", "tool_use_id"),
        ("tool", "input_schema"),
    ],
    "openai": [("call", "call_id"), ("answer", "output"), ("tool", "name")],
    "google": [],  # every field of Google's may be left out
    "openai-compatible": [("call", "name"), ("answer", "tool_call_id"), ("tool", "name")],
}


def _at(body: Any, place: list[Any]) -> Any:
    for step in place:
        body = body[step]
    return body


def _changed(asked: ReceivedRequest) -> ReceivedRequest:
    return ReceivedRequest(
        vendor=asked.vendor,
        path=asked.path,
        headers=asked.headers,
        body=copy.deepcopy(asked.body),
        began=asked.began,
    )


async def test_what_an_sdk_wrote_has_no_misfits(asked):
    assert misfits(asked) == []


@pytest.mark.parametrize("place", [None, "turn", "call", "answer", "tool"])
async def test_an_unknown_field_is_found_anywhere(asked, vendor, place):
    changed = _changed(asked)
    _at(changed.body, PLACES[vendor][place] if place else [])["surprise"] = 1
    [misfit] = misfits(changed)
    assert "surprise" in misfit
    assert "no such field" in misfit


@pytest.mark.parametrize(("vendor", "place", "field"), WRONG)
async def test_a_value_of_another_type_is_found(asked, vendor, place, field):
    changed = _changed(asked)
    _at(changed.body, PLACES[vendor][place])[field] = WRONG[vendor, place, field]
    assert any(f".{field}: " in misfit for misfit in misfits(changed))


async def test_a_field_that_is_missing_is_found(asked, vendor):
    for place, field in MISSING[vendor]:
        changed = _changed(asked)
        del _at(changed.body, PLACES[vendor][place])[field]
        assert any(f".{field}: is missing" in misfit for misfit in misfits(changed))


async def test_a_signature_that_is_no_base64_is_found(vendors):
    body = {
        "contents": [{"role": "model", "parts": [{"text": "a", "thoughtSignature": "not base64!"}]}]
    }
    asked = ReceivedRequest(vendor="google", path="/", headers={}, body=body, began=0)
    assert misfits(asked) == ["body.contents[0].parts[0].thoughtSignature: is not base64"]


async def test_a_body_that_is_no_object_is_a_misfit(vendor):
    assert misfits(ReceivedRequest(vendor=vendor, path="/", headers={}, body=None, began=0)) == [
        "body: is no object"
    ]
