"""An Osiris process whose model prints the time of each request and submits without changes."""

import time
from collections.abc import Sequence

import uvloop

from osiris.bootstrap import Parts, build_osiris
from osiris.config.settings import load_settings
from osiris.core.ports.models import (
    LanguageModel,
    Message,
    OnDelta,
    ToolCall,
    ToolSpec,
    ignore_deltas,
)
from osiris.runtime import serve


class TimestampModel:
    """A model that prints the time of each request."""

    is_priced = True

    async def reply(
        self,
        transcript: Sequence[Message],
        tools: Sequence[ToolSpec],
        on_delta: OnDelta = ignore_deltas,
    ) -> Message:
        print(time.time(), flush=True)
        return Message(
            role="assistant",
            text="",
            calls=(ToolCall(id="1", name="submit", args={"summary": "Nothing."}),),
        )


async def _select_model(model: str) -> LanguageModel:
    return TimestampModel()


if __name__ == "__main__":
    uvloop.run(serve(build_osiris(load_settings(), Parts(select_model=_select_model))))
