"""The file tools: reading, writing, editing, listing and searching the files of a session."""

from pydantic import BaseModel, ConfigDict, Field

from osiris.core.ports.models import ToolAnswer
from osiris.tools.context import ToolContext


class ToolArgs(BaseModel):
    """The arguments of a tool call. Unknown names are errors; a number may be given as text."""

    model_config = ConfigDict(extra="forbid")


class ReadFile(ToolArgs):
    path: str
    start: int = Field(1, ge=1, description="first line")
    lines: int = Field(400, ge=1, le=2000)


class WriteFile(ToolArgs):
    path: str
    content: str = Field(description="all of the file")


class EditFile(ToolArgs):
    path: str
    old: str = Field(min_length=1, description="exact text, found once in the file")
    new: str = Field(description="what takes its place")


class ListDir(ToolArgs):
    path: str = "."


class SearchFiles(ToolArgs):
    pattern: str = Field(min_length=1, description="Python regular expression")
    path: str = Field(".", description="file or folder")


async def read_file(context: ToolContext, args: ReadFile) -> ToolAnswer:
    return ToolAnswer(text=await context.session.files.read(args.path, args.start, args.lines))


async def write_file(context: ToolContext, args: WriteFile) -> ToolAnswer:
    return ToolAnswer(text=await context.session.files.write(args.path, _encode_text(args.content)))


async def edit_file(context: ToolContext, args: EditFile) -> ToolAnswer:
    if args.old == args.new:
        return ToolAnswer(text="error: `old` and `new` are the same")
    old = _encode_text(args.old)
    new = _encode_text(args.new)
    return ToolAnswer(text=await context.session.files.edit(args.path, old, new))


async def list_dir(context: ToolContext, args: ListDir) -> ToolAnswer:
    return ToolAnswer(text=await context.session.files.list(args.path))


async def search_files(context: ToolContext, args: SearchFiles) -> ToolAnswer:
    return ToolAnswer(text=await context.session.files.search(args.pattern, args.path))


def _encode_text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
