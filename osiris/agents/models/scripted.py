"""A scripted model: it follows a YAML script and checks the tools' answers, for demos and tests.

```yaml
runs:
- when: "requests changes"       # a part of the brief; the first run whose `when` matches is played
  steps:
  - say: I look at the file first.
    call: {read_file: {path: calc.py}}
    expect: {contains: "def add", exit_code: 0}
```
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from osiris.agents.loop import INTERRUPTED
from osiris.core.errors import Refused
from osiris.core.ports.models import Message, OnDelta, ToolCall, ToolSpec, ignore_deltas


class _Expect(BaseModel):
    model_config = ConfigDict(extra="forbid")
    contains: str | list[str] = Field(default_factory=list)
    lacks: str | list[str] = Field(default_factory=list)
    exit_code: int | None = None


class _Step(BaseModel):
    model_config = ConfigDict(extra="forbid")
    say: str = ""
    call: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    expect: _Expect = _Expect()


class _ScriptedRun(BaseModel):
    model_config = ConfigDict(extra="forbid")
    when: str = ""
    steps: Annotated[list[_Step], Field(min_length=1)]


class _Script(BaseModel):
    model_config = ConfigDict(extra="forbid")
    runs: Annotated[list[_ScriptedRun], Field(min_length=1)]


class ScriptedModel:
    """A model without state: it finds its position in the script from the transcript, so it
    survives any crash."""

    def __init__(self, script: Mapping[str, Any], name: str = "scripted") -> None:
        """Validate the script. Raises Refused when it is not valid."""
        try:
            self._script = _Script.model_validate(script)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise Refused(f"the script of {name} is not right at {where}: {first['msg']}") from None
        self._name = name
        self.is_priced = True  # it is free

    @classmethod
    def from_file(cls, path: Path) -> "ScriptedModel":
        try:
            script = yaml.safe_load(path.read_text("utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise Refused(f"the script {path} cannot be read: {error}") from None
        return cls(script if isinstance(script, dict) else {}, f"scripted:{path.name}")

    async def reply(
        self,
        transcript: Sequence[Message],
        tools: Sequence[ToolSpec],
        on_delta: OnDelta = ignore_deltas,
    ) -> Message:
        """Return the next scripted step.

        Raises Refused, naming the difference, when a tool answered something else.
        """
        run = self._find_run(transcript[1].text)
        answers = _group_answers(transcript)
        place = 0
        for answer in answers:
            if any(message.text == INTERRUPTED for message in answer):
                continue  # do the same step once more
            self._check_answers(run.steps[place], place, answer)
            place += 1
        if place >= len(run.steps):
            raise Refused(f"the script {self._name} has no step {place + 1}")
        on_delta("text", run.steps[place].say)
        return _build_message(run.steps[place], len(answers), self._name)

    def _find_run(self, brief: str) -> _ScriptedRun:
        for run in self._script.runs:
            if run.when in brief:
                return run
        raise Refused(f"the script {self._name} has no run for this brief")

    def _check_answers(self, step: _Step, place: int, answers: Sequence[Message]) -> None:
        text = "\n".join(answer.text for answer in answers)
        for piece in _as_list(step.expect.contains):
            if piece not in text:
                raise self._describe_difference(place, f"{piece!r} is not in the answer", text)
        for piece in _as_list(step.expect.lacks):
            if piece in text:
                raise self._describe_difference(place, f"{piece!r} is in the answer", text)
        codes = [answer.ran.exit_code for answer in answers if answer.ran]
        if step.expect.exit_code is not None and codes != [step.expect.exit_code]:
            raise self._describe_difference(
                place, f"exit code {step.expect.exit_code} was expected, not {codes}", text
            )

    def _describe_difference(self, place: int, what: str, text: str) -> Refused:
        return Refused(
            f"the world differs from the script {self._name} at step {place + 1}: {what}; it was:"
            f" {text[:500]}"
        )


def _group_answers(transcript: Sequence[Message]) -> list[list[Message]]:
    """Return the tools' answers, grouped by reply."""
    rounds: list[list[Message]] = []
    for message in transcript:
        if message.role == "assistant":
            rounds.append([])
        elif message.role == "tool":
            rounds[-1].append(message)
    return rounds


def _build_message(step: _Step, number: int, model: str) -> Message:
    calls = (
        ToolCall(id=f"call-{number}-{n}", name=name, args=args)
        for n, (name, args) in enumerate(step.call.items())
    )
    return Message(role="assistant", text=step.say, calls=tuple(calls), model=model)


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
