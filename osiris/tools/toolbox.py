"""The tools of one run: what the model may call, checked and answered. What goes wrong in one is
its answer."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from osiris.core.ports.models import ToolAnswer, ToolSpec
from osiris.core.ports.sandbox import Session
from osiris.core.redaction import Redactor
from osiris.core.sanitize import clean_text, cut_text
from osiris.tools import files, shell, submit
from osiris.tools.files import ToolArgs

# of wrong arguments: rows, and characters of each
MOST_COMPLAINTS = 5
MOST_NAME = 100
MOST_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Tool:
    args: type[ToolArgs]
    handler: Callable[[Session, Any], Awaitable[ToolAnswer]]
    description: str


TOOLS: Mapping[str, Tool] = {
    "read_file": Tool(files.ReadFile, files.read_file, "Show lines of a text file, numbered."),
    "write_file": Tool(
        files.WriteFile,
        files.write_file,
        "Make a file, or replace all of it. Folders are made. For a part, use edit_file.",
    ),
    "edit_file": Tool(
        files.EditFile,
        files.edit_file,
        "Replace one piece of a file. `old` must match exactly, indentation too, and be found"
        " once.",
    ),
    "list_dir": Tool(
        files.ListDir, files.list_dir, "List a folder: files with sizes, folders with a slash."
    ),
    "search": Tool(
        files.SearchFiles,
        files.search_files,
        "Find lines by regular expression, as path:line: text.",
    ),
    "run_command": Tool(
        shell.RunCommand,
        shell.run_command,
        "Run bash in the workspace. No network but to hosts that the repository names, no terminal,"
        " no input. Each command starts afresh there; what it leaves running is killed. Long output"
        " is cut in the middle and kept in /tmp/outputs.",
    ),
    "submit": Tool(
        submit.SubmitWork,
        submit.submit_work,
        "Hand in the workspace as it stands and end. Run the tests first; commits are not needed.",
    ),
}


@cache
def build_specs() -> Sequence[ToolSpec]:
    """The tools as a model sees them."""
    return [
        ToolSpec(name=name, description=tool.description, parameters=_build_schema(tool.args))
        for name, tool in TOOLS.items()
    ]


class SessionTools:
    """Implements `ports.Toolbox` over one session. `hide` takes secrets out of the answers, which
    go to a vendor."""

    def __init__(self, session: Session, hide: Redactor | None = None) -> None:
        self._session = session
        self._hide = hide or Redactor()

    def list_tools(self) -> Sequence[ToolSpec]:
        return build_specs()

    async def call_tool(self, name: str, args: Mapping[str, Any]) -> ToolAnswer:
        """Use a tool. Unknown tools, bad arguments and failures of a tool are answers.

        Raises RunEnded from `submit`, Unavailable or Refused when the sandbox itself fails.
        """
        tool = TOOLS.get(name)
        if tool is None:
            return ToolAnswer(
                text=f"no tool named {clean_text(name[:MOST_NAME])}; there are: {', '.join(TOOLS)}"
            )
        try:
            checked = tool.args.model_validate(dict(args))
        except ValidationError as error:
            return ToolAnswer(text=_describe_errors(name, error))
        try:
            answer = await tool.handler(self._session, checked)
        except UnicodeEncodeError:
            return ToolAnswer(
                text=(
                    f"{name} was not run: its arguments hold half of a character (a lone surrogate)"
                )
            )
        return replace(answer, text=self._hide(answer.text))


def _describe_errors(name: str, error: ValidationError) -> str:
    rows = [
        _describe_error(row)
        for row in error.errors(include_url=False, include_input=False)[:MOST_COMPLAINTS]
    ]
    more = error.error_count() - len(rows)
    return f"{name} was not run. Wrong arguments: {'; '.join(rows)}" + (
        f"; and {more} more" if more else ""
    )


def _describe_error(row: ErrorDetails) -> str:
    place = clean_text(".".join(map(str, row["loc"]))) or "arguments"
    return f"{cut_text(place, MOST_NAME)}: {cut_text(row['msg'], MOST_MESSAGE)}"


def _build_schema(args: type[ToolArgs]) -> dict[str, Any]:
    """Pydantic's schema without the words that say nothing to a model."""
    full = args.model_json_schema()
    fields = {
        name: {key: value for key, value in row.items() if key != "title"}
        for name, row in full["properties"].items()
    }
    schema = {"type": "object", "properties": fields, "additionalProperties": False}
    return schema | ({"required": full["required"]} if "required" in full else {})
