"""The shape of requests: each is compared with the request types of the vendor's own SDK."""

import base64
import binascii
import collections.abc
import enum
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, NotRequired, Required, Union

from pydantic import BaseModel
from typing_extensions import ReadOnly, TypedDict, get_type_hints, is_typeddict

from fake_vendors.server import ReceivedRequest

_LIST_TYPES = (list, collections.abc.Iterable, collections.abc.Sequence, collections.abc.Collection)
_PLAIN_TYPES = {
    str: "a text",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    type(None): "null",
}
_EXTRA_FIELDS = {"openai-compatible": ("reasoning_content",)}
"""Fields of messages that servers of this API have and the SDK's types do not."""


def find_misfits(request: ReceivedRequest) -> list[str]:
    """Return what in the body does not fit the request type of the vendor, as "where: what"
    lines."""
    if not isinstance(request.body, dict):
        return ["body: is no object"]
    body = request.body
    for name in _EXTRA_FIELDS.get(request.vendor, ()):
        messages = [
            {key: message[key] for key in message if key != name}
            for message in body.get("messages", ())
        ]
        body = {**body, "messages": messages}
    return _check_value(body, _load_request_type(request.vendor, bool(body.get("stream"))), "body")


@cache
def _load_request_type(vendor: str, stream: bool) -> Any:
    match vendor:
        case "anthropic":
            from anthropic.types import message_create_params as messages

            return (
                messages.MessageCreateParamsStreaming
                if stream
                else messages.MessageCreateParamsNonStreaming
            )
        case "openai":
            from openai.types.responses import response_create_params as responses

            return (
                responses.ResponseCreateParamsStreaming
                if stream
                else responses.ResponseCreateParamsNonStreaming
            )
        case "google":
            return _build_gemini_type()
        case _:
            from openai.types.chat import completion_create_params as chat

            return (
                chat.CompletionCreateParamsStreaming
                if stream
                else chat.CompletionCreateParamsNonStreaming
            )


def _build_gemini_type() -> Any:
    """Return the type of Google's body. Google's SDK has types for the parts of the body only."""
    from google.genai import types as genai

    fields = {
        "contents": Required[list[genai.Content]],
        "systemInstruction": genai.Content,
        "tools": list[genai.Tool],
        "toolConfig": genai.ToolConfig,
        "generationConfig": genai.GenerationConfig,
        "safetySettings": list[genai.SafetySetting],
        "cachedContent": str,
    }
    return TypedDict("GenerateContent", fields, total=False)  # type: ignore[operator]


def _check_value(value: Any, kind: Any, where: str) -> list[str]:
    """Compare a JSON value with a type."""
    origin = typing.get_origin(kind)
    args = typing.get_args(kind)
    if origin in (Annotated, Required, NotRequired, ReadOnly):
        return _check_value(value, args[0], where)
    if isinstance(kind, typing.TypeVar) or kind in (Any, object):
        return []
    if origin in (Union, types.UnionType):
        return _check_union(value, args, where)
    if origin is Literal:
        return (
            [] if value in args else [f"{where}: {value!r} is none of {', '.join(map(repr, args))}"]
        )
    if is_typeddict(kind) or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return _check_object(value, kind, where)
    if (origin or kind) in _LIST_TYPES or _is_list(kind):
        return _check_list(value, args[0] if args else Any, where)
    if (origin or kind) in (dict, collections.abc.Mapping):
        return _check_mapping(value, args[1] if args else Any, where)
    return _check_plain(value, kind, where)


def _is_list(kind: Any) -> bool:
    """Return whether a type is the SDK's protocol for lists of strings, which a single string does
    not fulfil."""
    return getattr(typing.get_origin(kind) or kind, "__name__", "") == "SequenceNotStr"


def _check_union(value: Any, kinds: tuple[Any, ...], where: str) -> list[str]:
    """Return the misfits with the type that was most likely meant: a type whose tag matches comes
    first, then the one with the fewest misfits."""
    misfits_by_kind = [(kind, _check_value(value, kind, where)) for kind in kinds]
    if any(not misfits for _, misfits in misfits_by_kind):
        return []
    return min(
        misfits_by_kind, key=lambda item: (not _has_matching_tag(value, item[0]), len(item[1]))
    )[1]


def _has_matching_tag(value: Any, kind: Any) -> bool:
    """Return whether the `type` or `role` of an object is that of this type. A list matches a
    list."""
    if isinstance(value, list):
        return typing.get_origin(kind) in _LIST_TYPES
    if not isinstance(value, dict) or not is_typeddict(kind):
        return (
            any(_has_matching_tag(value, member) for member in typing.get_args(kind))
            if typing.get_args(kind)
            else False
        )
    hints = _list_fields(kind)
    tags = [name for name in ("type", "role") if name in value and name in hints]
    return bool(tags) and not any(_check_value(value[name], hints[name][0], name) for name in tags)


def _check_object(value: Any, kind: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: is no object"]
    fields = _list_fields(kind)
    misfits = [
        f"{where}.{name}: is missing"
        for name, (_, is_required) in fields.items()
        if is_required and name not in value
    ]
    for name, field_value in value.items():
        if name in fields:
            misfits += _check_value(field_value, fields[name][0], f"{where}.{name}")
        else:
            misfits.append(f"{where}.{name}: {_get_type_name(kind)} has no such field")
    return misfits


@cache
def _list_fields(kind: Any) -> Mapping[str, tuple[Any, bool]]:
    """Return the name of each field on the wire, its type, and whether it is required."""
    if not is_typeddict(kind):
        fields = kind.model_fields.items()
        fields_by_name = {
            name: (field.rebuild_annotation(), field.is_required()) for name, field in fields
        }
        # Google accepts either name
        return fields_by_name | {
            field.alias: fields_by_name[name] for name, field in fields if field.alias
        }
    hints = get_type_hints(kind, include_extras=True)
    return {
        _get_wire_name(name, hint): (hint, _is_required(kind, name, hint))
        for name, hint in hints.items()
    }


def _is_required(kind: Any, name: str, hint: Any) -> bool:
    """Return whether a field is required. Python does not see a Required in annotations that are
    strings, as the SDKs' are."""
    origin = typing.get_origin(hint)
    return origin is Required or (name in kind.__required_keys__ and origin is not NotRequired)


def _get_wire_name(name: str, hint: Any) -> str:
    """Return the name of a TypedDict's field on the wire, which may be stated beside its type."""
    while typing.get_origin(hint) in (Required, NotRequired, ReadOnly):
        hint = typing.get_args(hint)[0]
    aliases = (getattr(extra, "alias", None) for extra in getattr(hint, "__metadata__", ()))
    return next((alias for alias in aliases if alias), name)


def _check_list(value: Any, kind: Any, where: str) -> list[str]:
    if not isinstance(value, list):
        return [f"{where}: is no list"]
    return [
        misfit
        for index, item in enumerate(value)
        for misfit in _check_value(item, kind, f"{where}[{index}]")
    ]


def _check_mapping(value: Any, kind: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: is no object"]
    return [
        misfit
        for name, item in value.items()
        for misfit in _check_value(item, kind, f"{where}.{name}")
    ]


def _check_plain(value: Any, kind: Any, where: str) -> list[str]:
    if kind is None:
        kind = type(None)
    if kind is bytes:
        return [] if _is_base64(value) else [f"{where}: is not base64"]
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        values = [member.value for member in kind]
        return (
            []
            if value in values
            else [f"{where}: {value!r} is none of {', '.join(map(repr, values))}"]
        )
    fits = type(value) in (int, float) if kind is float else type(value) is kind
    return [] if fits else [f"{where}: is not {_PLAIN_TYPES.get(kind, _get_type_name(kind))}"]


def _is_base64(value: Any) -> bool:
    try:
        base64.b64decode(value.replace("-", "+").replace("_", "/"), validate=True)
    except (AttributeError, binascii.Error, ValueError):
        return False
    return True


def _get_type_name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))
