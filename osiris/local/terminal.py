"""The terminal of the user. Text from a model or another person is sanitized before it is shown."""

import asyncio
import contextlib
import os
import sys
import termios
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from osiris.console.reports import format_steps
from osiris.core.ports.live import ReplyDelta
from osiris.core.ports.task_reader import Step
from osiris.core.sanitize import clean_text, show_hidden

_STYLES = {"text": "", "thinking": "dim italic"}
_COLOURS = {"+": "green", "-": "red", "@": "cyan"}
_MOST_LINE = 2_000  # characters of a line of a diff; one may be shown as eight


class UserLeft(Exception):
    """The user does not want to continue now."""


class Terminal:
    """A terminal, or a plain stream of lines if there is none."""

    def __init__(self) -> None:
        self._out = Console(soft_wrap=True, highlight=False)
        self._open = ""  # the kind of a streamed line that has not ended yet
        self._streamed: set[tuple[str, int]] = set()  # the replies shown while they arrived

    @property
    def is_terminal(self) -> bool:
        return self._out.is_terminal and sys.stdin.isatty()

    def print_line(self, words: str, style: str = "") -> None:
        self._end_line()
        self._out.print(Text(clean_text(words), style=style))

    def print_heading(self, mark: str, words: str) -> None:
        self._end_line()
        self._out.print(Text.assemble((f"{mark}  ", "bold cyan"), clean_text(words)))

    # ── the agent's steps ──

    def is_first_piece(self, delta: ReplyDelta) -> bool:
        """Return whether this is the first piece of its reply."""
        return (delta.run, delta.seq) not in self._streamed

    def print_delta(self, delta: ReplyDelta) -> None:
        """Print a piece of a reply as it arrives.

        Without a terminal, the whole reply is printed when it is complete.
        """
        if not self._out.is_terminal:
            return
        if delta.kind == "restart":
            self.print_line("   (the reply broke off; asking again)", "dim")
        elif delta.kind in _STYLES:
            self._streamed.add((delta.run, delta.seq))
            if self._open != delta.kind:
                self._end_line()
            text = clean_text(delta.text)
            self._out.print(Text(text, style=_STYLES[delta.kind]), end="")
            self._open = "" if text.endswith("\n") else delta.kind

    def print_steps(self, steps: Sequence[Step]) -> None:
        """Print messages of the transcript: the calls and their results."""
        for step in steps:
            for words in format_steps([step], said=(step.run, step.seq) not in self._streamed):
                self.print_line(f"   {words}", "dim")

    def _end_line(self) -> None:
        if self._open:
            self._out.print()
            self._open = ""

    # ── the result, and questions ──

    def print_diff(self, text: str, most: int | None = None) -> None:
        """Print each line as it is, with hidden characters made visible; of many lines the first
        `most`.

        Of a long line, only the beginning is printed, and the number of further characters.
        """
        lines = text.removesuffix("\n").split("\n")
        for line in lines[:most]:
            bold = line.startswith(("diff ", "+++", "---"))
            style = "bold" if bold else _COLOURS.get(line[:1], "")
            shown = Text(show_hidden(line[:_MOST_LINE]), style=style)
            if len(line) > _MOST_LINE:
                shown.append(f"… and {len(line) - _MOST_LINE} more characters in this line", "bold")
            self._out.print(shown)
        if most is not None and len(lines) > most:
            self.print_line(f"… and {len(lines) - most} more lines: [d] shows them all", "bold")

    async def ask_question(self, question: str, *, until: bytes = b"\n") -> str:
        """Return what the user types from now on, up to a line end or another `until`.

        Raises UserLeft at the end of the input.
        """
        self._end_line()
        typed = self._discard_typed()
        self._out.print(Text(question, style="bold"), end=" ")
        self._open = "question"
        while not typed.endswith(until):
            typed += await self._read_bytes()
        self._open = ""
        return clean_text(typed).strip()

    def _discard_typed(self) -> bytes:
        """Discard what was typed before the question was shown."""
        with contextlib.suppress(termios.error):
            termios.tcflush(sys.stdin, termios.TCIFLUSH)
        return b""

    async def _read_bytes(self) -> bytes:
        """Wait for the terminal without a thread, so that the wait can be cancelled."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        descriptor = sys.stdin.fileno()
        loop.add_reader(descriptor, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(descriptor)
        if not (typed := os.read(descriptor, 4096)):
            raise UserLeft
        return typed
