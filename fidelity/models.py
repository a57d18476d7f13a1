"""What Osiris asks of models, held against the request types of the vendors' own libraries."""

import asyncio
from collections.abc import Sequence

from fake_vendors.request_shapes import misfits
from fake_vendors.server import WIRES, ReceivedRequest, Vendors, serving
from fake_vendors.troubles import (
    BadArguments,
    BreakMidway,
    ContextFull,
    CutInCall,
    Say,
    UnknownTool,
)
from fidelity.finding import CheckOutcome
from osiris.agents.briefing import read_prompt
from osiris.agents.models.registry import Access, ModelRegistry
from osiris.core.ports.models import Message
from osiris.tools.toolbox import build_specs

_BOTH = {
    "say": "Two at once.",
    "call": {"read_file": {"path": 'a "b" é.py'}, "list_dir": {"path": "."}},
}
_ONE = {"say": "One.", "call": {"run_command": {"command": "echo 😀"}}}
_SCRIPT = {"runs": [{"steps": [_BOTH, *[_ONE] * 30]}]}
_TROUBLES = (
    Say("Well."),
    UnknownTool("browse"),
    BadArguments("read_file", '{"pa'),
    CutInCall("read_file", '{"pa'),
)


def requests() -> CheckOutcome:
    """Whole conversations with each vendor, and one that goes from each vendor to each other."""
    outcome = CheckOutcome(
        check="models", promise="requests to models fit the types of the vendors' own libraries"
    )
    for asked in asyncio.run(_run_conversations()):
        outcome.looked += 1
        for misfit in misfits(asked):
            outcome.blame(f"{asked.vendor} {asked.path}", misfit)
    outcome.seen = f"requests to {len(WIRES)} vendors"
    return outcome


async def _run_conversations() -> Sequence[ReceivedRequest]:
    async with serving(_SCRIPT) as vendors:
        for vendor in WIRES:
            await _converse(vendors, [vendor] * 8, troubled=True)
            for other in WIRES:
                if other != vendor:
                    await _converse(vendors, [vendor, other, vendor, other])
        return list(vendors.requests)


async def _converse(vendors: Vendors, who: Sequence[str], *, troubled: bool = False) -> None:
    """A conversation in which each of `who` says one thing; with every trouble between two of
    them."""
    registries = {vendor: _create_registry(vendors, vendor) for vendor in who}
    for one in registries.values():
        await one.probe_model()
    transcript = [
        Message(role="system", text=read_prompt()),
        Message(role="user", text="The brief."),
    ]
    troubles = [*_TROUBLES, BreakMidway(), ContextFull()] if troubled else []
    for vendor in who:
        vendors.troubles += [troubles.pop(0)] if troubles else []
        reply = await (await registries[vendor].select()).reply(transcript, build_specs())
        answers = [
            Message(role="tool", text="exit code 0 in 0.1 s\n" + "x" * 3000, call=call.id)
            for call in reply.calls
        ]
        transcript += [reply, *(answers or [Message(role="user", text="Use a tool.")])]
    for one in registries.values():
        await one.close()


def _create_registry(vendors: Vendors, vendor: str) -> ModelRegistry:
    environ = vendors.environ(vendor)
    name = vendor.upper().replace("-", "_")
    access = Access(key=environ[f"{name}_API_KEY"], url=environ[f"{name}_BASE_URL"])
    return ModelRegistry(environ["OSIRIS_MODEL"], {vendor: access}, window=8_000)
