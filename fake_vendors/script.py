"""What the model says: the next step of the script, or the trouble that takes its place."""

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fake_vendors.troubles import BadArguments, CutInCall, Empty, Refusal, Say, Trouble, UnknownTool
from fake_vendors.wire import TOOLLESS, ModelReply, ModelRequest, VendorError, WireToolCall, compact
from osiris.agents.models.scripted import ScriptedModel
from osiris.core.errors import Refused
from osiris.core.ports.models import Message

_THINKING = (
    "What is known so far – and what is not… I look at one thing after the other, très doucement."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Words:
    """A reply before it gets its ids."""

    text: str = ""
    calls: Sequence[tuple[str, str]] = ()
    end: Literal["", "cut", "refused"] = ""
    thinking: str = _THINKING


class ScriptPlayer:
    def __init__(self, script: Mapping[str, Any] | Path) -> None:
        """Raises Refused when the script is not one."""
        self._brain = (
            ScriptedModel.from_file(script) if isinstance(script, Path) else ScriptedModel(script)
        )

    async def reply(
        self, ask: ModelRequest, transcript: Sequence[Message], trouble: Trouble | None, prefix: str
    ) -> ModelReply:
        """The reply to a transcript; its call ids begin with `prefix`. Raises Denied when the
        script refuses."""
        words = _instead(trouble) or _aside(ask) or await self._scripted(transcript)
        calls = (
            WireToolCall(id=f"{prefix}{secrets.token_hex(10)}", name=name, arguments=arguments)
            for name, arguments in words.calls
        )
        return ModelReply(
            id=secrets.token_hex(12),
            state=base64.b64encode(secrets.token_bytes(96)).decode(),
            thinking=words.thinking,
            text=words.text,
            calls=tuple(calls),
            end=words.end,
        )

    async def _scripted(self, transcript: Sequence[Message]) -> _Words:
        try:
            message = await self._brain.reply(transcript, [])
        except Refused as refused:
            raise VendorError(400, str(refused)) from None
        return _Words(
            text=message.text,
            calls=[(call.name, compact(dict(call.args))) for call in message.calls],
        )


def _instead(trouble: Trouble | None) -> _Words | None:
    """What a trouble puts in the place of the script's words; None when they stay."""
    match trouble:
        case Empty():
            return _Words(thinking="")
        case Say(text=text):
            return _Words(text=text)
        case Refusal(text=text):
            return _Words(text=text, end="refused", thinking="")
        case BadArguments(name=name, arguments=arguments):
            return _Words(calls=[(name, arguments)])
        case CutInCall(name=name, arguments=arguments):
            return _Words(calls=[(name, arguments)], end="cut")
        case UnknownTool(name=name):
            return _Words(calls=[(name, "{}")])
        case _:
            return None


def _aside(ask: ModelRequest) -> _Words | None:
    """What is said before any script: that there are no tools here, or that they can be called."""
    if ask.model == TOOLLESS:
        return _Words(text="I would look at the files, but I can only talk about them.")
    if ask.probes:
        schema = ask.tools["ready"]
        fields = schema.get("properties") or {}
        args = {name: _filled(fields.get(name) or {}) for name in schema.get("required") or ()}
        return _Words(calls=[("ready", json.dumps(args))])
    return None


def _filled(schema: Mapping[str, Any]) -> Any:
    if schema.get("enum"):
        return schema["enum"][0]
    plain = {"boolean": True, "integer": 1, "number": 1, "array": [], "object": {}}
    return plain.get(str(schema.get("type")).lower(), "yes")
