"""A life of Osiris whose model only notes when it is asked, and hands in nothing."""

import time
from collections.abc import Sequence

import uvloop

from osiris.bootstrap import build
from osiris.config.settings import load
from osiris.core.ports.models import Brain, Hear, Message, ToolCall, ToolSpec, deaf
from osiris.runtime import serve


class Noting:
    priced = True

    async def reply(self, transcript: Sequence[Message], tools: Sequence[ToolSpec], hear: Hear = deaf) -> Message:
        print(time.time(), flush=True)
        return Message(
            role="assistant", text="", calls=(ToolCall(id="1", name="submit", args={"summary": "Nothing."}),)
        )


async def _choose(model: str) -> Brain:
    return Noting()


if __name__ == "__main__":
    uvloop.run(serve(build(load(), choose=_choose)))
