"""The replies of the model: the next step of the script, or the trouble that replaces it."""

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fake_vendors.troubles import BadArguments, CutInCall, Empty, Refusal, Say, Trouble, UnknownTool
from fake_vendors.wire import (
    TOOLLESS,
    ModelReply,
    ModelRequest,
    VendorError,
    WireToolCall,
    dump_compact,
)
from osiris.agents.models.scripted import ScriptedModel
from osiris.core.errors import Refused
from osiris.core.ports.models import Message

_THINKING = (
    "What is known so far – and what is not… I look at one thing after the other, très doucement."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ReplyDraft:
    """A reply before it gets its ids."""

    text: str = ""
    calls: Sequence[tuple[str, str]] = ()
    end: Literal["", "cut", "refused"] = ""
    thinking: str = _THINKING


class ScriptPlayer:
    """A player of one script."""

    def __init__(self, script: Mapping[str, Any] | Path) -> None:
        """Raise Refused if the script is invalid."""
        self._model = (
            ScriptedModel.from_file(script) if isinstance(script, Path) else ScriptedModel(script)
        )

    async def create_reply(
        self,
        request: ModelRequest,
        transcript: Sequence[Message],
        trouble: Trouble | None,
        prefix: str,
    ) -> ModelReply:
        """Return the reply to a transcript. The ids of its calls begin with `prefix`. Raise
        VendorError if the script refuses the transcript."""
        draft = (
            _replace_step(trouble) or _reply_to_probe(request) or await self._play_step(transcript)
        )
        calls = (
            WireToolCall(id=f"{prefix}{secrets.token_hex(10)}", name=name, arguments=arguments)
            for name, arguments in draft.calls
        )
        return ModelReply(
            id=secrets.token_hex(12),
            state=base64.b64encode(secrets.token_bytes(96)).decode(),
            thinking=draft.thinking,
            text=draft.text,
            calls=tuple(calls),
            end=draft.end,
        )

    async def _play_step(self, transcript: Sequence[Message]) -> _ReplyDraft:
        try:
            message = await self._model.reply(transcript, [])
        except Refused as refused:
            raise VendorError(400, str(refused)) from None
        return _ReplyDraft(
            text=message.text,
            calls=[(call.name, dump_compact(dict(call.args))) for call in message.calls],
        )


def _replace_step(trouble: Trouble | None) -> _ReplyDraft | None:
    """Return the reply that a trouble puts in place of the script's step; None if the step
    stays."""
    match trouble:
        case Empty():
            return _ReplyDraft(thinking="")
        case Say(text=text):
            return _ReplyDraft(text=text)
        case Refusal(text=text):
            return _ReplyDraft(text=text, end="refused", thinking="")
        case BadArguments(name=name, arguments=arguments):
            return _ReplyDraft(calls=[(name, arguments)])
        case CutInCall(name=name, arguments=arguments):
            return _ReplyDraft(calls=[(name, arguments)], end="cut")
        case UnknownTool(name=name):
            return _ReplyDraft(calls=[(name, "{}")])
        case _:
            return None


def _reply_to_probe(request: ModelRequest) -> _ReplyDraft | None:
    """Return the reply to a probe, or the refusal of the model without tools; None for all other
    requests."""
    if request.model == TOOLLESS:
        return _ReplyDraft(text="I would look at the files, but I can only talk about them.")
    if request.is_probe:
        schema = request.tools["ready"]
        fields = schema.get("properties") or {}
        args = {
            name: _create_value(fields.get(name) or {}) for name in schema.get("required") or ()
        }
        return _ReplyDraft(calls=[("ready", json.dumps(args))])
    return None


def _create_value(schema: Mapping[str, Any]) -> Any:
    if schema.get("enum"):
        return schema["enum"][0]
    examples = {"boolean": True, "integer": 1, "number": 1, "array": [], "object": {}}
    return examples.get(str(schema.get("type")).lower(), "yes")
