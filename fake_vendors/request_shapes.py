"""Whether a request is one that the vendor's own SDK could have written: held against the SDK's
request types."""

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

_LISTS = (list, collections.abc.Iterable, collections.abc.Sequence, collections.abc.Collection)
_PLAIN = {
    str: "a text",
    bool: "true or false",
    int: "an integer",
    float: "a number",
    type(None): "null",
}
_DIALECT = {"openai-compatible": ("reasoning_content",)}
"""Fields that servers of this wire have and the SDK's types have not, at any message."""


def misfits(asked: ReceivedRequest) -> list[str]:
    """What in the body does not fit the vendor's request type, as "where: what" lines; none when
    all of it fits."""
    if not isinstance(asked.body, dict):
        return ["body: is no object"]
    body = asked.body
    for name in _DIALECT.get(asked.vendor, ()):
        messages = [
            {key: message[key] for key in message if key != name}
            for message in body.get("messages", ())
        ]
        body = {**body, "messages": messages}
    return _misfits(body, _request(asked.vendor, bool(body.get("stream"))), "body")


@cache
def _request(vendor: str, stream: bool) -> Any:
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
            return _gemini()
        case _:
            from openai.types.chat import completion_create_params as chat

            return (
                chat.CompletionCreateParamsStreaming
                if stream
                else chat.CompletionCreateParamsNonStreaming
            )


def _gemini() -> Any:
    """Google's SDK has types for the parts of the body, not for all of it."""
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


def _misfits(value: Any, kind: Any, where: str) -> list[str]:
    """Hold a JSON value against a type."""
    origin = typing.get_origin(kind)
    args = typing.get_args(kind)
    if origin in (Annotated, Required, NotRequired, ReadOnly):
        return _misfits(value, args[0], where)
    if isinstance(kind, typing.TypeVar) or kind in (Any, object):
        return []
    if origin in (Union, types.UnionType):
        return _best(value, args, where)
    if origin is Literal:
        return (
            [] if value in args else [f"{where}: {value!r} is none of {', '.join(map(repr, args))}"]
        )
    if is_typeddict(kind) or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return _object(value, kind, where)
    if (origin or kind) in _LISTS or _is_list(kind):
        return _list(value, args[0] if args else Any, where)
    if (origin or kind) in (dict, collections.abc.Mapping):
        return _mapping(value, args[1] if args else Any, where)
    return _plain(value, kind, where)


def _is_list(kind: Any) -> bool:
    """A protocol that an SDK made for lists of texts, so that a text is none of them."""
    return getattr(typing.get_origin(kind) or kind, "__name__", "") == "SequenceNotStr"


def _best(value: Any, kinds: tuple[Any, ...], where: str) -> list[str]:
    """The misfits with the type that was most likely meant: the one whose tag is right, then the
    one with fewest."""
    found = [(kind, _misfits(value, kind, where)) for kind in kinds]
    if any(not bad for _, bad in found):
        return []
    return min(found, key=lambda pair: (not _tagged(value, pair[0]), len(pair[1])))[1]


def _tagged(value: Any, kind: Any) -> bool:
    """Whether an object's `type` or `role` is this type's; a list fits a list."""
    if isinstance(value, list):
        return typing.get_origin(kind) in _LISTS
    if not isinstance(value, dict) or not is_typeddict(kind):
        return (
            any(_tagged(value, arm) for arm in typing.get_args(kind))
            if typing.get_args(kind)
            else False
        )
    hints = _fields(kind)
    tags = [name for name in ("type", "role") if name in value and name in hints]
    return bool(tags) and not any(_misfits(value[name], hints[name][0], name) for name in tags)


def _object(value: Any, kind: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: is no object"]
    fields = _fields(kind)
    found = [
        f"{where}.{name}: is missing"
        for name, (_, needed) in fields.items()
        if needed and name not in value
    ]
    for name, inner in value.items():
        if name in fields:
            found += _misfits(inner, fields[name][0], f"{where}.{name}")
        else:
            found.append(f"{where}.{name}: {_name(kind)} has no such field")
    return found


@cache
def _fields(kind: Any) -> Mapping[str, tuple[Any, bool]]:
    """Each field's name on the wire, its type, and whether it must be there."""
    if not is_typeddict(kind):
        fields = kind.model_fields.items()
        known = {name: (field.rebuild_annotation(), field.is_required()) for name, field in fields}
        # Google takes either name
        return known | {field.alias: known[name] for name, field in fields if field.alias}
    hints = get_type_hints(kind, include_extras=True)
    return {_alias(name, hint): (hint, _needed(kind, name, hint)) for name, hint in hints.items()}


def _needed(kind: Any, name: str, hint: Any) -> bool:
    """Python itself does not see a Required in annotations that are text, as the SDKs' are."""
    origin = typing.get_origin(hint)
    return origin is Required or (name in kind.__required_keys__ and origin is not NotRequired)


def _alias(name: str, hint: Any) -> str:
    """A TypedDict's field may have another name on the wire, told beside its type."""
    while typing.get_origin(hint) in (Required, NotRequired, ReadOnly):
        hint = typing.get_args(hint)[0]
    told = (getattr(extra, "alias", None) for extra in getattr(hint, "__metadata__", ()))
    return next((alias for alias in told if alias), name)


def _list(value: Any, kind: Any, where: str) -> list[str]:
    if not isinstance(value, list):
        return [f"{where}: is no list"]
    return [bad for at, item in enumerate(value) for bad in _misfits(item, kind, f"{where}[{at}]")]


def _mapping(value: Any, kind: Any, where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{where}: is no object"]
    return [bad for name, item in value.items() for bad in _misfits(item, kind, f"{where}.{name}")]


def _plain(value: Any, kind: Any, where: str) -> list[str]:
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
    return [] if fits else [f"{where}: is not {_PLAIN.get(kind, _name(kind))}"]


def _is_base64(value: Any) -> bool:
    try:
        base64.b64decode(value.replace("-", "+").replace("_", "/"), validate=True)
    except (AttributeError, binascii.Error, ValueError):
        return False
    return True


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))
