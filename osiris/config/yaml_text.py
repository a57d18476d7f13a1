"""A bounded loader for untrusted YAML: nesting, repetition and size are limited."""

from typing import Any, Final

import yaml

MOST: Final = 1 << 16  # characters of one file
_MOST_DEPTH: Final = 50
_MOST_NODES: Final = 5_000
_MOST_NUMBER: Final = 100  # characters: PyYAML converts longer ones in quadratic time
_IN_NUMBERS: Final = frozenset("+-0123456789.:_xabcdefABCDEF")
_OPENING: Final = (yaml.MappingStartEvent, yaml.SequenceStartEvent)
_CLOSING: Final = (yaml.MappingEndEvent, yaml.SequenceEndEvent)
# libyaml reads 64 KiB in 0.1 s; without it, PyYAML takes a second
_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class UnreadableYaml(ValueError):
    """The text is not YAML, or it exceeds a limit.

    The reason continues a sentence that starts with the file's name; `line` is the position, from
    1, or 0 if unknown.
    """

    def __init__(self, reason: str, line: int = 0) -> None:
        super().__init__(reason)
        self.line = line


def load_yaml(text: str) -> Any:
    """Return the content of `text` as plain Python values.

    Raises UnreadableYaml with the reason. The events are counted before anything is built: aliases
    share the value that they refer to, but merge keys (`<<`) copy it, which takes exponential time
    and memory.
    """
    if len(text) > MOST:
        raise UnreadableYaml(f"is larger than {MOST >> 10} KiB")
    try:
        _check_events(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506  (a safe loader)
    except UnreadableYaml:
        raise
    except (
        yaml.YAMLError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as error:  # PyYAML does not wrap the last three
        mark = getattr(error, "problem_mark", None)
        raise UnreadableYaml("is not YAML", mark.line + 1 if mark else 0) from None


def _check_events(text: str) -> None:
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_Loader)):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, _OPENING):
            depth += 1
        elif isinstance(event, _CLOSING):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and not event.style:
            _check_plain(event.value, line)
        if tag := getattr(event, "tag", None):
            raise UnreadableYaml(f"has a tag ({tag[:40]})", line)
        if depth > _MOST_DEPTH:
            raise UnreadableYaml(f"nests deeper than {_MOST_DEPTH} levels", line)
        if count > _MOST_NODES:
            raise UnreadableYaml(f"has more than {_MOST_NODES} nodes", line)


def _check_plain(value: str, line: int) -> None:
    if value == "<<":
        raise UnreadableYaml("has a merge key", line)
    if len(value) > _MOST_NUMBER and set(value) <= _IN_NUMBERS:
        raise UnreadableYaml(f"has a number of more than {_MOST_NUMBER} characters", line)
