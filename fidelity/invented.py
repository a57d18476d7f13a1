"""Fields that GitHub's description does not have: what devhub invents, code could come to rely
on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fidelity.finding import pointer_to

Json = Mapping[str, Any]
Path = tuple[str | int, ...]


class Invented:
    """`resolved` follows the references of a schema."""

    def __init__(self, resolved: Callable[[Json], Json]) -> None:
        self._resolved = resolved

    def fields(
        self, schemas: Sequence[Json], data: Any, path: Path = ()
    ) -> Iterator[tuple[str, str]]:
        """Every field of `data` that none of the schemas, nor of those they join or choose from,
        names."""
        parts = [part for schema in schemas for part in self._parts(schema)]
        if isinstance(data, list):
            below = [part["items"] for part in parts if "items" in part]
            for place, one in enumerate(data):
                yield from self.fields(below, one, (*path, place))
        elif isinstance(data, dict) and any("properties" in part for part in parts):
            open_ = any(part.get("additionalProperties") not in (None, False) for part in parts)
            for name, value in data.items():
                below = [
                    part["properties"][name] for part in parts if name in part.get("properties", {})
                ]
                if below:
                    yield from self.fields(below, value, (*path, name))
                elif not open_:
                    yield pointer_to((*path, name)), "the description knows no such field"

    def _parts(self, schema: Json) -> Iterator[Json]:
        found = self._resolved(schema)
        yield found
        for key in ("allOf", "anyOf", "oneOf"):
            for member in found.get(key, ()):
                yield from self._parts(member)
