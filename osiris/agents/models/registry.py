"""The registry of models, the only module that knows vendors.

A vendor's library is loaded when it is first chosen.
"""

import asyncio
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osiris.agents.models.fallback import FallbackModel
from osiris.agents.models.scripted import ScriptedModel
from osiris.core.errors import OsirisError, Refused, RunEnded, Unavailable
from osiris.core.ports.models import LanguageModel

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from osiris.agents.models.model_call import VendorModel

PATIENCE = 180.0  # seconds
# seconds that testing a model chosen by a person may take: other deliveries wait meanwhile
_CHECK = 5.0
_NAME = re.compile(r"[a-z-]+:[A-Za-z0-9._:/@+-]{1,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The access to a vendor: its key and its address. An empty `url` means the vendor's own."""

    key: str
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """A vendor of models.

    `make` creates a model of the model library; `setting` is the operator's setting that configures
    the vendor; `pricing_id` is the vendor's name in the price list; `window` is the context window,
    in tokens, of a model that is not in that list.
    """

    make: Callable[[str, Access, Any], "Model"]
    setting: str
    url: str
    pricing_id: str
    window: int
    settings: Mapping[str, Any]


def _make_anthropic(name: str, access: Access, http: Any) -> "Model":
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    provider = AnthropicProvider(api_key=access.key, base_url=access.url, http_client=http)
    return AnthropicModel(name, provider=provider)


def _make_openai(name: str, access: Access, http: Any) -> "Model":
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIResponsesModel(
        name, provider=OpenAIProvider(openai_client=_create_openai_client(access, http))
    )


def _make_compatible(name: str, access: Access, http: Any) -> "Model":
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIChatModel(
        name, provider=OpenAIProvider(openai_client=_create_openai_client(access, http))
    )


def _create_openai_client(access: Access, http: Any) -> Any:
    """Return an OpenAI client that sends the conversation in `extra_body`.

    The client compares every item of a conversation with every type that it could have (60 ms at 50
    steps), to rename fields that need no renaming. It sends `extra_body` unchanged, in the same
    place of the body.
    """
    from openai import AsyncOpenAI
    from openai.resources.chat import AsyncChat, AsyncCompletions
    from openai.resources.responses import AsyncResponses

    class Responses(AsyncResponses):
        async def create(self, **params: Any) -> Any:
            return await super().create(**_move_to_extra(params, "input"))

    class Completions(AsyncCompletions):
        async def create(self, **params: Any) -> Any:
            return await super().create(**_move_to_extra(params, "messages"))

    class Chat(AsyncChat):
        @cached_property
        def completions(self) -> Any:
            return Completions(self._client)

    class Client(AsyncOpenAI):
        @cached_property
        def responses(self) -> Any:
            return Responses(self)

        @cached_property
        def chat(self) -> Any:
            return Chat(self)

    return Client(
        api_key=access.key or "none", base_url=access.url, http_client=http, max_retries=0
    )


def _make_google(name: str, access: Access, http: Any) -> "Model":
    from pydantic_ai.models.google import GoogleModel
    from pydantic_ai.providers.google import GoogleProvider

    inner = GoogleProvider(api_key=access.key, base_url=access.url, http_client=http).client
    return GoogleModel(name, provider=GoogleProvider(client=_Google(inner)))  # type: ignore[call-overload]


class _ClientProxy:
    """A proxy for a part of Google's client.

    Everything except what a subclass overrides is passed through.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Google(_ClientProxy):
    """A Google client that sends the conversation in `extra_body`, for the same reason as OpenAI's
    (20 ms at step 50)."""

    @cached_property
    def aio(self) -> Any:
        return _GoogleAio(self._inner.aio)


class _GoogleAio(_ClientProxy):
    @cached_property
    def models(self) -> Any:
        return _GoogleModels(self._inner.models)


class _GoogleModels(_ClientProxy):
    async def generate_content_stream(self, *, model: str, contents: list[Any], config: Any) -> Any:
        extra = {"extra_body": {"contents": [_encode_content(content) for content in contents]}}
        config = {**config, "http_options": {**(config.get("http_options") or {}), **extra}}
        return await self._inner.generate_content_stream(
            model=model, contents=contents[:1], config=config
        )


_GOOGLES_NAMES = {
    "function_call": "functionCall",
    "function_response": "functionResponse",
    "thought_signature": "thoughtSignature",
}


def _encode_content(content: dict[str, Any]) -> dict[str, Any]:
    """Return one message as JSON.

    It handles texts, thoughts, calls and their answers, which is all that we send.
    """
    return {**content, "parts": [_encode_part(part) for part in content["parts"]]}


def _encode_part(part: dict[str, Any]) -> dict[str, Any]:
    found = {
        _GOOGLES_NAMES.get(name, name): value for name, value in part.items() if value is not None
    }
    if isinstance(signature := found.get("thoughtSignature"), bytes):
        found["thoughtSignature"] = urlsafe_b64encode(signature).decode()
    return found


def _move_to_extra(params: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        **params,
        name: [],
        "extra_body": {**(params.get("extra_body") or {}), name: params[name]},
    }


VENDORS: Mapping[str, Vendor] = {
    "anthropic": Vendor(
        make=_make_anthropic,
        setting="ANTHROPIC_API_KEY",
        url="https://api.anthropic.com",
        pricing_id="anthropic",
        window=200_000,
        settings={"thinking": True, "cache": True, "max_tokens": 16_000},
    ),
    "openai": Vendor(
        make=_make_openai,
        setting="OPENAI_API_KEY",
        url="https://api.openai.com/v1",
        pricing_id="openai",
        window=128_000,
        # OpenAI stores nothing; it returns the encrypted reasoning to us instead
        settings={"openai_store": False},
    ),
    "google": Vendor(
        make=_make_google,
        setting="GOOGLE_API_KEY",
        url="https://generativelanguage.googleapis.com",
        pricing_id="google",
        window=1_000_000,
        settings={"thinking": True},
    ),
    "openai-compatible": Vendor(
        make=_make_compatible,
        setting="OPENAI_COMPATIBLE_BASE_URL",
        url="",
        pricing_id="",
        window=32_000,
        settings={},
    ),
}


class ModelRegistry:
    """The models of this process, each created when it is first chosen."""

    def __init__(
        self,
        own: str,
        access: Mapping[str, Access],
        *,
        second: str = "",
        patience: float = PATIENCE,
        window: int | None = None,
        hide: Callable[[str], str] = str,
    ) -> None:
        """Create a registry without models.

        `own` is the operator's model and `second` its fallback, both VENDOR:MODEL; `access` maps
        the configured vendors to their access; `window` (tokens) overrides the known context window
        of every model.
        """
        self._own = own
        self._second = second
        self._access = access
        self._patience = patience
        self._window = window
        self._hide = hide
        self._models: dict[str, VendorModel] = {}
        self._fallback: FallbackModel | None = None
        self._making_lock = asyncio.Lock()
        self._clients: list[Any] = []

    async def select(self, model: str = "") -> LanguageModel:
        """Return the model VENDOR:MODEL, or the operator's if `model` is empty.

        Raises Refused with the list of configured models.
        """
        wanted = model or self._own
        self.check_configured(wanted)
        if wanted == self._own and self._second:
            self.check_configured(self._second)
            if self._fallback is None:
                self._fallback = FallbackModel(
                    await self._get_model(wanted), await self._get_model(self._second)
                )
            return self._fallback
        return await self._get_model(wanted)

    def check_configured(self, model: str) -> None:
        """Raise Refused when the model cannot be chosen here. No request is sent."""
        vendor = model.partition(":")[0]
        if not model:
            raise Refused(
                "no model is configured; the operator sets OSIRIS_MODEL, for example"
                " anthropic:claude-sonnet-5"
            )
        if vendor == "scripted" and model in (self._own, self._second):
            return  # a file of the operator: nobody else may choose one
        if vendor in VENDORS and vendor not in self._access:
            raise Refused(
                f"the model {model[:100]!r} cannot be used here, because"
                f" {VENDORS[vendor].setting} is not set; configured are: {self._list_choices()}"
            )
        if vendor not in self._access or not _NAME.fullmatch(model):
            raise Refused(
                f"there is no model {model[:100]!r} here; configured are: {self._list_choices()}"
            )

    async def why_unavailable(self, model: str) -> str:
        """Return why `model` does not work, by sending a request.

        Returns "" when it works, or does not answer now.
        """
        try:
            async with asyncio.timeout(_CHECK):
                await self.probe_model(model)
        except (Unavailable, TimeoutError):
            return ""
        except OsirisError as error:
            return str(error)
        return ""

    async def probe_model(self, model: str = "") -> None:
        """Let a model call a tool. Raises Refused with the reason, or Unavailable."""
        await self.select(model)
        if (vendor_model := self._models.get(model or self._own)) is None:
            return  # a scripted model
        try:
            await vendor_model.probe_tools()
        except RunEnded as end:
            raise Refused(getattr(end.outcome, "reason", str(end))) from None

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()

    def _list_choices(self) -> str:
        own = [
            model
            for model in (self._own, self._second)
            if model.partition(":")[0] in (*self._access, "scripted")
        ]
        return (
            ", ".join(dict.fromkeys([*own, *(f"{vendor}:…" for vendor in self._access)])) or "none"
        )

    async def _get_model(self, model: str) -> LanguageModel:
        vendor, _, name = model.partition(":")
        if vendor == "scripted":
            return ScriptedModel.from_file(Path(name))
        async with self._making_lock:
            if model not in self._models:  # in a thread: the libraries take a second to load
                self._models[model] = await asyncio.to_thread(self._make_model, vendor, name)
        return self._models[model]

    def _make_model(self, vendor: str, name: str) -> "VendorModel":
        from pydantic_ai.models import create_async_httpx2_client

        from osiris.agents.models.model_call import CallOptions, VendorModel
        from osiris.agents.models.pricing import find_context_window, price_usage

        known = VENDORS[vendor]
        access = self._access[vendor]
        access = Access(key=access.key, url=access.url or known.url)
        self._clients.append(http := create_async_httpx2_client(timeout=int(self._patience) + 1))
        room = (
            self._window or find_context_window(known.pricing_id, name, access.url) or known.window
        )
        options = CallOptions(
            name=f"{vendor}:{name}",
            settings=known.settings,  # type: ignore[arg-type]
            patience=self._patience,
            room=int(room * 0.75),  # the rest is reserved for the tools and the reply
            price=partial(price_usage, known.pricing_id, name, access.url),
            others=self._list_choices(),
            hide=self._hide,
        )
        return VendorModel(known.make(name, access, http), options)
