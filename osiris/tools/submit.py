"""The `submit` tool, which ends a run."""

from typing import NoReturn

from pydantic import Field

from osiris.core.errors import RunEnded
from osiris.core.ports.models import Submitted
from osiris.tools.context import ToolContext
from osiris.tools.files import ToolArgs


class SubmitWork(ToolArgs):
    summary: str = Field(
        min_length=1, description="what you changed, why, and what you left undone"
    )


async def submit_work(context: ToolContext, args: SubmitWork) -> NoReturn:
    raise RunEnded(Submitted(summary=args.summary.strip()))
