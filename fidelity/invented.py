"""Fields that GitHub's description does not contain. Code could come to rely on a field that only
devhub has."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from fidelity.finding import build_pointer

Json = Mapping[str, Any]
Path = tuple[str | int, ...]


class UndocumentedFields:
    """A search for undocumented fields; `resolve` follows the references of a schema."""

    def __init__(self, resolve: Callable[[Json], Json]) -> None:
        self._resolve = resolve

    def find(
        self, schemas: Sequence[Json], data: Any, path: Path = ()
    ) -> Iterator[tuple[str, str]]:
        """Yield every field of `data` that is in none of the schemas, nor in those that they
        combine or choose from."""
        parts = [part for schema in schemas for part in self._list_parts(schema)]
        if isinstance(data, list):
            inner_schemas = [part["items"] for part in parts if "items" in part]
            for index, item in enumerate(data):
                yield from self.find(inner_schemas, item, (*path, index))
        elif isinstance(data, dict) and any("properties" in part for part in parts):
            allows_others = any(
                part.get("additionalProperties") not in (None, False) for part in parts
            )
            for name, value in data.items():
                inner_schemas = [
                    part["properties"][name] for part in parts if name in part.get("properties", {})
                ]
                if inner_schemas:
                    yield from self.find(inner_schemas, value, (*path, name))
                elif not allows_others:
                    yield build_pointer((*path, name)), "the description knows no such field"

    def _list_parts(self, schema: Json) -> Iterator[Json]:
        resolved = self._resolve(schema)
        yield resolved
        for key in ("allOf", "anyOf", "oneOf"):
            for member in resolved.get(key, ()):
                yield from self._list_parts(member)
