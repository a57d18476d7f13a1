"""Serialization of our dataclasses as JSON: `{"type": class name, …fields}`."""

import inspect
from typing import Any

from pydantic import TypeAdapter

from osiris.core import effects, events, work
from osiris.core.conversation import Conversation
from osiris.core.ports.models import Message
from osiris.core.task import Task

_TYPES = {
    name: TypeAdapter(cls)
    for module in (events, effects, work)
    for name, cls in vars(module).items()
    if inspect.isclass(cls)
    and cls.__module__ == module.__name__
    and hasattr(cls, "__dataclass_fields__")
}
_task = TypeAdapter(Task)
_message = TypeAdapter(Message)
_conversation = TypeAdapter(Conversation)


def dump(value: events.Event | effects.Effect) -> dict[str, Any]:
    name = type(value).__name__
    fields: dict[str, Any] = _TYPES[name].dump_python(value, mode="json")
    return {"type": name, **fields}


def load(data: dict[str, Any]) -> Any:
    """Return the event or effect that `dump` wrote.

    Raises KeyError or pydantic.ValidationError for anything else.
    """
    fields = dict(data)
    return _TYPES[fields.pop("type")].validate_python(fields)


def dump_task(task: Task) -> dict[str, Any]:
    data: dict[str, Any] = _task.dump_python(task, mode="json")
    return data


def load_task(data: dict[str, Any]) -> Task:
    return _task.validate_python(data)


def dump_conversation(conversation: Conversation) -> dict[str, Any]:
    data: dict[str, Any] = _conversation.dump_python(conversation, mode="json")
    return data


def load_conversation(data: dict[str, Any]) -> Conversation:
    return _conversation.validate_python(data)


def dump_message(message: Message) -> dict[str, Any]:
    data: dict[str, Any] = _message.dump_python(message, mode="json", exclude_defaults=True)
    return data


def load_message(data: dict[str, Any]) -> Message:
    return _message.validate_python(data)


def replace_nul(text: str) -> str:
    """Return text that every database accepts: PostgreSQL refuses U+0000."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")
