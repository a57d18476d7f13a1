"""Which model thinks: the only file that knows vendors. Each one's library is loaded when it is first chosen."""

import asyncio
import re
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osiris.agents.models.fallback import WithSecond
from osiris.agents.models.scripted import ScriptedBrain
from osiris.core.errors import OsirisError, Refused, RunEnded, Unavailable
from osiris.core.ports.models import Brain

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from osiris.agents.models.model_call import ModelBrain

PATIENCE = 180.0  # seconds
_CHECK = 5.0  # seconds a person's choice of a model may take to be tried: other deliveries wait for it
_NAME = re.compile(r"[a-z-]+:[A-Za-z0-9._:/@+-]{1,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a vendor is reached: with which key, and where; an empty `url` is the vendor's own."""

    key: str
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vendor:
    """`make` gives a model of the model layer; `priced` is the vendor's name in the price list, `window` the tokens a
    model takes that is not in it."""

    make: Callable[[str, Access, Any], "Model"]
    url: str
    priced: str
    window: int
    settings: Mapping[str, Any]


def _anthropic(name: str, access: Access, http: Any) -> "Model":
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    provider = AnthropicProvider(api_key=access.key, base_url=access.url, http_client=http)
    return AnthropicModel(name, provider=provider)


def _openai(name: str, access: Access, http: Any) -> "Model":
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIResponsesModel(name, provider=OpenAIProvider(openai_client=_openai_client(access, http)))


def _compatible(name: str, access: Access, http: Any) -> "Model":
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=_openai_client(access, http)))


def _openai_client(access: Access, http: Any) -> Any:
    """OpenAI's client, which is given a conversation as something extra.

    It holds every item of a conversation against every type that it might have (60 ms at 50 steps), to rename fields
    that need no renaming. What is extra it sends as it is, in the same place of the body.
    """
    from openai import AsyncOpenAI
    from openai.resources.chat import AsyncChat, AsyncCompletions
    from openai.resources.responses import AsyncResponses

    class Responses(AsyncResponses):
        async def create(self, **params: Any) -> Any:
            return await super().create(**_as_extra(params, "input"))

    class Completions(AsyncCompletions):
        async def create(self, **params: Any) -> Any:
            return await super().create(**_as_extra(params, "messages"))

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

    return Client(api_key=access.key or "none", base_url=access.url, http_client=http, max_retries=0)


def _google(name: str, access: Access, http: Any) -> "Model":
    from pydantic_ai.models.google import GoogleModel
    from pydantic_ai.providers.google import GoogleProvider

    inner = GoogleProvider(api_key=access.key, base_url=access.url, http_client=http).client
    return GoogleModel(name, provider=GoogleProvider(client=_Google(inner)))  # type: ignore[call-overload]


class _Through:
    """Stands in front of a part of Google's client, and is that part but for what a subclass changes."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Google(_Through):
    """Google's client, which is given a conversation as something extra, for the same reason (20 ms at step 50)."""

    @cached_property
    def aio(self) -> Any:
        return _GoogleAio(self._inner.aio)


class _GoogleAio(_Through):
    @cached_property
    def models(self) -> Any:
        return _GoogleModels(self._inner.models)


class _GoogleModels(_Through):
    async def generate_content_stream(self, *, model: str, contents: list[Any], config: Any) -> Any:
        extra = {"extra_body": {"contents": [_on_googles_wire(content) for content in contents]}}
        config = {**config, "http_options": {**(config.get("http_options") or {}), **extra}}
        return await self._inner.generate_content_stream(model=model, contents=contents[:1], config=config)


_GOOGLES_NAMES = {
    "function_call": "functionCall",
    "function_response": "functionResponse",
    "thought_signature": "thoughtSignature",
}


def _on_googles_wire(content: dict[str, Any]) -> dict[str, Any]:
    """One message as its JSON is; of texts, thoughts, calls and their answers, which is all we send."""
    return {**content, "parts": [_part_on_googles_wire(part) for part in content["parts"]]}


def _part_on_googles_wire(part: dict[str, Any]) -> dict[str, Any]:
    found = {_GOOGLES_NAMES.get(name, name): value for name, value in part.items() if value is not None}
    if isinstance(signature := found.get("thoughtSignature"), bytes):
        found["thoughtSignature"] = urlsafe_b64encode(signature).decode()
    return found


def _as_extra(params: dict[str, Any], name: str) -> dict[str, Any]:
    return {**params, name: [], "extra_body": {**(params.get("extra_body") or {}), name: params[name]}}


VENDORS: Mapping[str, Vendor] = {
    "anthropic": Vendor(
        make=_anthropic,
        url="https://api.anthropic.com",
        priced="anthropic",
        window=200_000,
        settings={"thinking": True, "cache": True, "max_tokens": 16_000},
    ),
    "openai": Vendor(
        make=_openai,
        url="https://api.openai.com/v1",
        priced="openai",
        window=128_000,
        settings={"openai_store": False},  # nothing stays there; the encrypted reasoning comes back to us instead
    ),
    "google": Vendor(
        make=_google,
        url="https://generativelanguage.googleapis.com",
        priced="google",
        window=1_000_000,
        settings={"thinking": True},
    ),
    "openai-compatible": Vendor(make=_compatible, url="", priced="", window=32_000, settings={}),
}


class Brains:
    """The brains of this process, each made when it is first chosen."""

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
        """`own` is the operator's model and `second` stands in for it, both VENDOR:MODEL; `access` has the vendors
        that are configured; `window` (tokens) overrides what is known of each model."""
        self._own, self._second, self._access = own, second, access
        self._patience, self._window, self._hide = patience, window, hide
        self._made: dict[str, ModelBrain] = {}
        self._both: WithSecond | None = None
        self._making = asyncio.Lock()
        self._clients: list[Any] = []

    async def choose(self, model: str = "") -> Brain:
        """The brain of VENDOR:MODEL; without one the operator's. Raises Refused with the list of those configured."""
        wanted = model or self._own
        self.check(wanted)
        if wanted == self._own and self._second:
            self.check(self._second)
            if self._both is None:
                self._both = WithSecond(await self._brain(wanted), await self._brain(self._second))
            return self._both
        return await self._brain(wanted)

    def check(self, model: str) -> None:
        """Raises Refused when this is no model that can be chosen here. Nobody is asked."""
        vendor = model.partition(":")[0]
        if not model:
            raise Refused(
                "no model is configured; the operator sets OSIRIS_MODEL, for example anthropic:claude-sonnet-5"
            )
        if vendor == "scripted" and model in (self._own, self._second):
            return  # a file of the operator's: nobody else may name one
        if vendor not in self._access or not _NAME.fullmatch(model):
            raise Refused(f"there is no model {model[:100]!r} here; configured are: {self._choices()}")

    async def trouble(self, model: str) -> str:
        """Why `model` cannot think, found out by asking it; "" when it can, or does not answer now."""
        try:
            async with asyncio.timeout(_CHECK):
                await self.probe(model)
        except (Unavailable, TimeoutError):
            return ""
        except OsirisError as error:
            return str(error)
        return ""

    async def probe(self, model: str = "") -> None:
        """Let a model call a tool. Raises Refused with what is wrong, or Unavailable."""
        await self.choose(model)
        if (brain := self._made.get(model or self._own)) is None:
            return  # a script
        try:
            await brain.probe()
        except RunEnded as end:
            raise Refused(getattr(end.outcome, "reason", str(end))) from None

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()

    def _choices(self) -> str:
        own = [model for model in (self._own, self._second) if model]
        return ", ".join(dict.fromkeys([*own, *(f"{vendor}:…" for vendor in self._access)])) or "none"

    async def _brain(self, model: str) -> Brain:
        vendor, _, name = model.partition(":")
        if vendor == "scripted":
            return ScriptedBrain.from_file(Path(name))
        async with self._making:
            if model not in self._made:  # off the loop: the libraries take a second to load
                self._made[model] = await asyncio.to_thread(self._make, vendor, name)
        return self._made[model]

    def _make(self, vendor: str, name: str) -> "ModelBrain":
        from pydantic_ai.models import create_async_httpx2_client

        from osiris.agents.models.model_call import ModelBrain, Terms
        from osiris.agents.models.pricing import priced, window

        known, access = VENDORS[vendor], self._access[vendor]
        access = Access(key=access.key, url=access.url or known.url)
        self._clients.append(http := create_async_httpx2_client(timeout=int(self._patience) + 1))
        room = self._window or window(known.priced, name, access.url) or known.window
        terms = Terms(
            name=f"{vendor}:{name}",
            settings=known.settings,  # type: ignore[arg-type]
            patience=self._patience,
            room=int(room * 0.75),  # the rest is for the tools and the reply
            price=partial(priced, known.priced, name, access.url),
            others=self._choices(),
            hide=self._hide,
        )
        return ModelBrain(known.make(name, access, http), terms)
