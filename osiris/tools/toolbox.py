"""The tools of one run: their descriptions, the check of their arguments, and the calls. A failure
of a tool is returned to the model as its answer."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from osiris.core.ports.models import ToolAnswer, ToolSpec
from osiris.core.ports.sandbox import Session
from osiris.core.redaction import Redactor
from osiris.core.review import Review
from osiris.core.sanitize import clean_text, cut_text
from osiris.tools import files, reviews, shell, submit
from osiris.tools.context import ToolContext
from osiris.tools.files import ToolArgs

# limits of the answer to wrong arguments: rows, and characters of each
MOST_COMPLAINTS = 5
MOST_NAME = 100
MOST_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool; the flags are those of `ToolSpec`."""

    args: type[ToolArgs]
    handler: Callable[[ToolContext, Any], Awaitable[ToolAnswer]]
    description: str
    repeatable: bool = False
    edits_files: bool = False
    ends_run: bool = False


TOOLS: Mapping[str, Tool] = {
    "read_file": Tool(
        files.ReadFile,
        files.read_file,
        "Show lines of a text file, numbered.",
        repeatable=True,
    ),
    "write_file": Tool(
        files.WriteFile,
        files.write_file,
        "Make a file, or replace all of it. Folders are made. For a part, use edit_file.",
        repeatable=True,
        edits_files=True,
    ),
    "edit_file": Tool(
        files.EditFile,
        files.edit_file,
        "Replace one piece of a file. `old` must match exactly, indentation too, and be found"
        " once.",
        edits_files=True,
    ),
    "list_dir": Tool(
        files.ListDir,
        files.list_dir,
        "List a folder: files with sizes, folders with a slash.",
        repeatable=True,
    ),
    "search": Tool(
        files.SearchFiles,
        files.search_files,
        "Find lines by regular expression, as path:line: text.",
        repeatable=True,
    ),
    "run_command": Tool(
        shell.RunCommand,
        shell.run_command,
        "Run bash in the workspace. No network but to hosts that the repository names, no terminal,"
        " no input. Each command starts afresh there; what it leaves running is killed. Long output"
        " is cut in the middle and kept in /tmp/outputs.",
    ),
    "read_review": Tool(
        reviews.ReadReview,
        reviews.read_review,
        "Show a review, or one of its threads, whole.",
        repeatable=True,
    ),
    "submit": Tool(
        submit.SubmitWork,
        submit.submit_work,
        "Hand in the workspace as it stands and end. Run the tests first; commits are not needed.",
        repeatable=True,
        ends_run=True,
    ),
}


@cache
def build_specs(names: tuple[str, ...] = tuple(TOOLS)) -> Sequence[ToolSpec]:
    """Return the descriptions of some tools, as they are sent to the model."""
    return [
        ToolSpec(
            name=name,
            description=tool.description,
            parameters=_build_schema(tool.args),
            repeatable=tool.repeatable,
            edits_files=tool.edits_files,
            ends_run=tool.ends_run,
        )
        for name in names
        for tool in (TOOLS[name],)
    ]


class SessionTools:
    """Some tools of one session; implements `osiris.core.ports.models.Toolbox`. `answered` are the
    reviews of the run. `hide` removes secrets from the answers, which are sent to a model
    vendor."""

    def __init__(
        self,
        session: Session,
        names: Sequence[str] = tuple(TOOLS),
        answered: Sequence[Review] = (),
        *,
        hide: Redactor | None = None,
    ) -> None:
        self._context = ToolContext(session, answered)
        self._names = tuple(names)
        self._hide = hide or Redactor()

    def list_tools(self) -> Sequence[ToolSpec]:
        return build_specs(self._names)

    async def call_tool(self, name: str, args: Mapping[str, Any]) -> ToolAnswer:
        """Call a tool. Unknown tools, bad arguments and failures of a tool become answers.

        Raises RunEnded from `submit`, Unavailable or Refused when the sandbox itself fails.
        """
        if name not in self._names:
            known = ", ".join(self._names)
            return ToolAnswer(
                text=f"no tool named {clean_text(name[:MOST_NAME])}; there are: {known}"
            )
        tool = TOOLS[name]
        try:
            checked = tool.args.model_validate(dict(args))
        except ValidationError as error:
            return ToolAnswer(text=_describe_errors(name, error))
        try:
            answer = await tool.handler(self._context, checked)
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
    """Return Pydantic's schema without the titles, which do not help a model."""
    full = args.model_json_schema()
    fields = {
        name: {key: value for key, value in row.items() if key != "title"}
        for name, row in full["properties"].items()
    }
    schema = {"type": "object", "properties": fields, "additionalProperties": False}
    return schema | ({"required": full["required"]} if "required" in full else {})
