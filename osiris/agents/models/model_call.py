"""A single model call: streamed, repeated once when the stream breaks, with every failure as a
readable error."""

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

from osiris.agents.context_window import fit_to_window
from osiris.agents.models import message_conversion
from osiris.core.errors import OsirisError, RunEnded, Unavailable
from osiris.core.ports.models import Halted, Message, OnDelta, ToolSpec, ignore_deltas
from osiris.core.work import Usage

log = logging.getLogger(__name__)

LONGEST_PAUSE = 300.0  # most seconds to pause for a vendor, whatever it asks for

_READY = ToolSpec(
    name="ready",
    description="Say that you can call tools.",
    parameters={"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]},
)
_ASK_READY = (Message(role="user", text="Call the tool `ready` with the word yes."),)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """Options of the calls of one model.

    `name` is VENDOR:MODEL; `patience` is the number of seconds that it may be silent; `room` is the
    number of tokens that a conversation may have; `others` lists the models that can be chosen
    instead, as text; `hide` removes secrets from a vendor's messages.
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


class _StreamBroken(Exception):
    """The stream ended before the reply did."""


class VendorModel:
    """A `ports.LanguageModel` over one model of the model library.

    Its first request tests whether the model can call tools.
    """

    def __init__(self, model: Model, options: CallOptions) -> None:
        self._model = model
        self._options = options
        self._probed = False
        self.is_priced = options.price(Usage(input=1000), 0).usd is not None
        self._settings: ModelSettings = {
            **options.settings,
            "timeout": options.patience,
            "first_event_timeout": options.patience,
            "request_timeout": 10 * options.patience,
            "max_retries": 0,
            "framing_announcement": "never",
        }

    async def reply(
        self,
        transcript: Sequence[Message],
        tools: Sequence[ToolSpec],
        on_delta: OnDelta = ignore_deltas,
    ) -> Message:
        await self.probe_tools()
        for room in (self._options.room, self._options.room // 2):
            try:
                return await self._ask_model(fit_to_window(transcript, room), tools, on_delta)
            except ModelContextWindowExceededError:
                log.info(
                    "%s says the conversation is too long; trying with half of it",
                    self._options.name,
                )
        raise _create_halt(
            f"the conversation no longer fits into the window of {self._options.name}; another"
            " model may take it"
        )

    async def probe_tools(self) -> None:
        """Ask the model to call a tool, once in a process.

        Raises the same errors as `reply`; the run is halted when the model does not call the tool.
        """
        if self._probed:
            return
        for _ in range(2):
            try:
                answer = await self._ask_model(_ASK_READY, [_READY], ignore_deltas)
            except ModelContextWindowExceededError:
                raise _create_halt(
                    f"{self._options.name} has too small a window for any work"
                ) from None
            if any(call.name == _READY.name for call in answer.calls):
                self._probed = True
                return
        raise RunEnded(
            Halted(
                reason=(
                    f"{self._options.name} cannot call tools, and without them no work can be done"
                )
            )
        )

    async def _ask_model(
        self, transcript: Sequence[Message], tools: Sequence[ToolSpec], on_delta: OnDelta
    ) -> Message:
        """Return the model's reply. Raises ModelContextWindowExceededError and our own errors."""
        messages = message_conversion.convert_transcript(transcript, self._options.vendor)
        parameters = message_conversion.convert_tools(tools)
        try:
            try:
                return await self._stream_reply(messages, parameters, on_delta)
            except (_StreamBroken, UnexpectedModelBehavior, ModelConnectionError) as error:
                if isinstance(error, ModelConnectionError) and error.phase in ("pool", "connect"):
                    raise
                log.info(
                    "the stream of %s broke (%s); asking once more",
                    self._options.name,
                    type(error).__name__,
                )
                on_delta("restart", "")
                return await self._stream_reply(messages, parameters, on_delta)
        except (_StreamBroken, UnexpectedModelBehavior):
            raise Unavailable(f"the reply of {self._options.name} broke off twice") from None
        except ModelContextWindowExceededError:
            raise
        except ModelAPIError as error:
            raise self._translate_error(error) from None

    async def _stream_reply(
        self, messages: list[ModelMessage], parameters: ModelRequestParameters, on_delta: OnDelta
    ) -> Message:
        try:
            async with model_request_stream(
                self._model,
                messages,
                model_settings=self._settings,
                model_request_parameters=parameters,
            ) as stream:
                async for event in stream:
                    message_conversion.forward_event(event, on_delta)
                response = stream.get()
        except ContentFilterError:
            return Message(role="assistant", text="", model=self._options.name, end="refused")
        if response.finish_reason is None and not _is_whole(response):
            raise _StreamBroken
        return message_conversion.convert_response(
            response, self._options.name, self._options.price
        )

    def _translate_error(self, error: ModelAPIError) -> OsirisError:
        """Return a vendor's error as ours: one to retry later, or one that halts the run until a
        person fixes it."""
        vendor, name = self._options.vendor, self._options.name
        match error:
            case ModelAuthenticationError():
                return _create_halt(
                    f"the model refused the key: the operator's key or address for {vendor} is"
                    " wrong"
                )
            case ModelQuotaExceededError():
                return _create_halt(f"the operator's account at {vendor} has no credit left")
            case ModelNotFoundError():
                return _create_halt(
                    f"there is no model {name} at its address; configured are:"
                    f" {self._options.others}"
                )
            case ModelRequestRejectedError():
                return _create_halt(f"{name} refused the request: {self._describe_error(error)}")
            case ModelRateLimitError():
                return Unavailable(
                    f"{vendor} asks for a pause", retry_in=_bound_pause(error.retry_after)
                )
            case ModelRequestTimeout():
                silent = (
                    "said nothing for"
                    if error.setting == "first_event_timeout"
                    else "was not done after"
                )
                return Unavailable(f"{name} {silent} {error.timeout:g} s and was cut off")
            case ModelConnectionError():
                return Unavailable(f"{vendor} cannot be reached, or broke off")
        return Unavailable(
            f"{vendor} has trouble ({self._describe_error(error)})",
            retry_in=_bound_pause(error.retry_after),
        )

    def _describe_error(self, error: ModelAPIError) -> str:
        """Return the vendor's description of an error in one line, without secrets."""
        body = error.body if isinstance(error.body, dict) else {}
        inner = body.get("error", body)
        told = inner.get("message") if isinstance(inner, dict) else inner
        return " ".join(self._options.hide(str(told or error.message)).split())[:300]


def _is_whole(response: ModelResponse) -> bool:
    """Return whether a reply with an unknown finish reason is complete: it has tool calls, and the
    vendor did send a reason."""
    calls = [part for part in response.parts if isinstance(part, ToolCallPart)]
    return (
        bool(calls)
        and response.provider_details is not None
        and "finish_reason" in response.provider_details
    )


def _bound_pause(seconds: float | None) -> float | None:
    return None if seconds is None else min(seconds, LONGEST_PAUSE)


def _create_halt(reason: str) -> RunEnded:
    return RunEnded(Halted(reason=reason))
