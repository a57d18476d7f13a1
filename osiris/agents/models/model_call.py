"""One call of a model: streamed, repeated once when the stream breaks, and every failure a sentence."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pydantic_ai.direct import model_request_stream
from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    ModelRequestTimeout,
    UnexpectedModelBehavior,
)
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.settings import ModelSettings

from osiris.agents.context_window import fitted
from osiris.agents.models import message_conversion
from osiris.core.errors import OsirisError, RunEnded, Unavailable
from osiris.core.events import Usage
from osiris.core.ports.models import Halted, Hear, Message, ToolSpec, deaf

log = logging.getLogger(__name__)

LONGEST_PAUSE = 300.0  # seconds we leave a vendor alone at most, whatever it asks for

_READY = ToolSpec(
    name="ready",
    description="Say that you can call tools.",
    parameters={"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
)
_ASK_READY = (Message(role="user", text="Call the tool `ready` with the word yes."),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How a model is asked.

    `name` is VENDOR:MODEL; `patience` how many seconds it may be silent; `room` how many tokens a conversation may
    take; `others` the models that can be chosen instead, as words; `hide` takes secrets out of a vendor's words.
    """

    name: str
    settings: ModelSettings
    patience: float
    room: int
    price: message_conversion.Price
    others: str
    hide: Callable[[str], str]

    @property
    def vendor(self) -> str:
        return self.name.partition(":")[0]


class _Broken(Exception):
    """The stream ended before the reply did."""


class ModelBrain:
    """`ports.Brain` over one model of the model layer. Its first question is whether the model can call tools."""

    def __init__(self, model: Model, terms: Terms) -> None:
        self._model, self._terms = model, terms
        self._probed = False
        self.priced = terms.price(Usage(input=1000), 0).usd is not None
        self._settings: ModelSettings = {
            **terms.settings,
            "timeout": terms.patience,
            "first_event_timeout": terms.patience,
            "request_timeout": 10 * terms.patience,
            "max_retries": 0,
            "framing_announcement": "never",
        }

    async def reply(self, transcript: Sequence[Message], tools: Sequence[ToolSpec], hear: Hear = deaf) -> Message:
        await self.probe()
        for room in (self._terms.room, self._terms.room // 2):
            try:
                return await self._ask(fitted(transcript, room), tools, hear)
            except ModelContextWindowExceededError:
                log.info("%s says the conversation is too long; trying with half of it", self._terms.name)
        raise _halted(
            f"the conversation no longer fits into the window of {self._terms.name}; another model may take it"
        )

    async def probe(self) -> None:
        """Let the model call a tool, once in a process. Raises as `reply` does; Halted when it does not call it."""
        if self._probed:
            return
        for _ in range(2):
            try:
                answer = await self._ask(_ASK_READY, [_READY], deaf)
            except ModelContextWindowExceededError:
                raise _halted(f"{self._terms.name} has too small a window for any work") from None
            if any(call.name == _READY.name for call in answer.calls):
                self._probed = True
                return
        raise RunEnded(Halted(reason=f"{self._terms.name} cannot call tools, and without them no work can be done"))

    async def _ask(self, transcript: Sequence[Message], tools: Sequence[ToolSpec], hear: Hear) -> Message:
        """Raises ModelContextWindowExceededError beside our own errors."""
        messages, parameters = (
            message_conversion.history(transcript, self._terms.vendor),
            message_conversion.parameters(tools),
        )
        try:
            try:
                return await self._once(messages, parameters, hear)
            except (_Broken, UnexpectedModelBehavior, ModelConnectionError) as error:
                if isinstance(error, ModelConnectionError) and error.phase in ("pool", "connect"):
                    raise
                log.info("the stream of %s broke (%s); asking once more", self._terms.name, type(error).__name__)
                hear("again", "")
                return await self._once(messages, parameters, hear)
        except (_Broken, UnexpectedModelBehavior):
            raise Unavailable(f"the reply of {self._terms.name} broke off twice") from None
        except ModelContextWindowExceededError:
            raise
        except ModelAPIError as error:
            raise self._told(error) from None

    async def _once(self, messages: list[ModelMessage], parameters: ModelRequestParameters, hear: Hear) -> Message:
        try:
            async with model_request_stream(
                self._model, messages, model_settings=self._settings, model_request_parameters=parameters
            ) as stream:
                async for event in stream:
                    message_conversion.tell(event, hear)
                response = stream.get()
        except ContentFilterError:
            return Message(role="assistant", text="", model=self._terms.name, end="refused")
        if response.finish_reason is None and not _is_whole(response):
            raise _Broken
        return message_conversion.reply(response, self._terms.name, self._terms.price)

    def _told(self, error: ModelAPIError) -> OsirisError:
        """A vendor's refusal as ours: wait, or let a person mend it, or give up."""
        vendor, name = self._terms.vendor, self._terms.name
        match error:
            case ModelAuthenticationError():
                return _halted(f"the model refused the key: the operator's key or address for {vendor} is wrong")
            case ModelQuotaExceededError():
                return _halted(f"the operator's account at {vendor} has no credit left")
            case ModelNotFoundError():
                return _halted(f"there is no model {name} at its address; configured are: {self._terms.others}")
            case ModelRequestRejectedError():
                return _halted(f"{name} refused the request: {self._words(error)}")
            case ModelRateLimitError():
                return Unavailable(f"{vendor} asks for a pause", retry_in=_bounded(error.retry_after))
            case ModelRequestTimeout():
                silent = "said nothing for" if error.setting == "first_event_timeout" else "was not done after"
                return Unavailable(f"{name} {silent} {error.timeout:g} s and was cut off")
            case ModelConnectionError():
                return Unavailable(f"{vendor} cannot be reached, or broke off")
        return Unavailable(f"{vendor} has trouble ({self._words(error)})", retry_in=_bounded(error.retry_after))

    def _words(self, error: ModelAPIError) -> str:
        """What the vendor says of it, in a line, without secrets."""
        body = error.body if isinstance(error.body, dict) else {}
        inner = body.get("error", body)
        told = inner.get("message") if isinstance(inner, dict) else inner
        return " ".join(self._terms.hide(str(told or error.message)).split())[:300]


def _is_whole(response: ModelResponse) -> bool:
    """Whether a reply that ended for a reason the model layer does not know is all there: it calls, and it did end."""
    calls = [part for part in response.parts if isinstance(part, ToolCallPart)]
    return bool(calls) and response.provider_details is not None and "finish_reason" in response.provider_details


def _bounded(seconds: float | None) -> float | None:
    return None if seconds is None else min(seconds, LONGEST_PAUSE)


def _halted(reason: str) -> RunEnded:
    return RunEnded(Halted(reason=reason))
