"""GraphQL: Osiris' documents and devhub's data, held against GitHub's schema; nothing is
executed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLCompositeType,
    GraphQLError,
    GraphQLList,
    GraphQLNonNull,
    GraphQLSchema,
    GraphQLType,
    OperationDefinitionNode,
    SelectionNode,
    is_abstract_type,
    is_composite_type,
    is_enum_type,
    is_interface_type,
    is_object_type,
    parse,
    validate,
)
from graphql.execution.values import get_variable_values

from fidelity import packages
from fidelity.description import Description, Fault
from fidelity.finding import CheckOutcome, pointer_to, short
from fidelity.recordings import RecordedRequest, Recordings
from fidelity.rest import GRAPHQL

PLAIN: Mapping[str, type | tuple[type, ...]] = {
    "String": str,
    "ID": str,
    "Boolean": bool,
    "Int": int,
    "Float": (int, float),
    "DateTime": str,
    "URI": str,
    "GitObjectID": str,
    "HTML": str,
}


def documents(recordings: Recordings) -> CheckOutcome:
    """Every GraphQL document of Osiris is valid, and its variables are what it declares."""
    outcome = CheckOutcome(
        check="graphql documents", promise="what Osiris asks GraphQL for is in GitHub's schema"
    )
    names = set()
    for one in recordings.asked:
        if one.path != GRAPHQL or one.by != "osiris" or not one.test.startswith("tests/flow/"):
            continue
        outcome.looked += 1
        where, document, said = _asked(one)
        names.add(where)
        if document is None:
            outcome.blame(where, "the document cannot be parsed")
            continue
        for reason in _wrong(packages.graphql_schema(), document, said):
            outcome.blame(where, reason)
    outcome.seen = f"requests with {len(names)} documents"
    return outcome


def data(recordings: Recordings) -> CheckOutcome:
    """Every GraphQL answer of devhub has the shape that its document asks for."""
    outcome = CheckOutcome(
        check="graphql answers", promise="what devhub answers over GraphQL has the schema's types"
    )
    for one in recordings.asked:
        if one.path != GRAPHQL or not one.status:
            continue
        outcome.looked += 1
        where, document, _ = _asked(one)
        for pointer, reason in _faults(document, one):
            outcome.blame(f"{where} {one.status}", reason, pointer)
    outcome.seen = "answers"
    return outcome


def _asked(one: RecordedRequest) -> tuple[str, DocumentNode | None, dict[str, Any]]:
    said = json.loads(one.body)
    try:
        document = parse(said.get("query") or "")
    except GraphQLError:
        return "POST /graphql", None, said
    name = next((d.name.value for d in _operations(document) if d.name), "unnamed")
    return f"POST /graphql {name}", document, said


def _operations(document: DocumentNode) -> list[OperationDefinitionNode]:
    return [one for one in document.definitions if isinstance(one, OperationDefinitionNode)]


def _wrong(schema: GraphQLSchema, document: DocumentNode, said: Mapping[str, Any]) -> Iterator[str]:
    if errors := validate(schema, document):
        yield from (error.message for error in errors)
        return
    for operation in _operations(document):
        given = get_variable_values(
            schema, operation.variable_definitions, said.get("variables") or {}
        )
        if isinstance(given, list):
            yield from (error.message for error in given)


def _faults(document: DocumentNode | None, one: RecordedRequest) -> Iterator[Fault]:
    told = json.loads(one.answer)
    if one.status != 200:
        yield from Description(packages.openapi()).of_data(
            told, ["#/components/schemas/basic-error"]
        )
        return
    errors = told.get("errors", [])
    for error in errors:
        if not isinstance(error.get("message"), str):
            yield "/errors/*", "an error without a message"
    if document is None or validate(packages.graphql_schema(), document):
        if not errors:
            yield "", "GitHub would refuse this document"
        return
    [operation] = _operations(document)
    root = packages.graphql_schema().get_root_type(operation.operation)
    if root is None or told.get("data") is None:
        if not errors:
            yield "/data", "neither data nor errors"
        return
    walk = Walk(packages.graphql_schema(), document)
    yield from walk.composite(root, [operation], told["data"], ("data",))


class Walk:
    """Goes through data beside the selections that asked for it."""

    def __init__(self, schema: GraphQLSchema, document: DocumentNode) -> None:
        self._schema = schema
        self._fragments = {
            one.name.value: one
            for one in document.definitions
            if isinstance(one, FragmentDefinitionNode)
        }

    def value(
        self, kind: GraphQLType, nodes: Sequence[FieldNode], told: Any, path: tuple[str | int, ...]
    ) -> Iterator[Fault]:
        if isinstance(kind, GraphQLNonNull):
            kind = kind.of_type
            if told is None:
                yield pointer_to(path), f"null, but the schema says {kind}!"
        if told is None:
            return
        if isinstance(kind, GraphQLList):
            if not isinstance(told, list):
                yield pointer_to(path), f"{short(told)} is no list"
                return
            for place, one in enumerate(told):
                yield from self.value(kind.of_type, nodes, one, (*path, place))
        elif is_composite_type(kind):
            yield from self.composite(kind, nodes, told, path)
        else:
            yield from _leaf(kind, told, path)

    def composite(
        self,
        kind: Any,
        nodes: Sequence[FieldNode | OperationDefinitionNode],
        told: Any,
        path: tuple[str | int, ...],
    ) -> Iterator[Fault]:
        if not isinstance(told, dict):
            yield pointer_to(path), f"{short(told)} is no {kind}"
            return
        if is_abstract_type(kind):
            named = self._schema.get_type(str(told.get("__typename")))
            if is_object_type(named) and self._schema.is_sub_type(kind, named):
                kind = named
        asked = self._fields(
            kind,
            [one for node in nodes if node.selection_set for one in node.selection_set.selections],
        )
        for name, fields in asked.items():
            if name not in told:
                if not is_abstract_type(kind) or fields[0].name.value in getattr(
                    kind, "fields", {}
                ):
                    yield pointer_to((*path, name)), "asked for, but not there"
            elif fields[0].name.value != "__typename":
                declared = getattr(kind, "fields", {}).get(fields[0].name.value)
                if declared is not None:
                    yield from self.value(declared.type, fields, told[name], (*path, name))
        for name in told:
            if name not in asked:
                yield pointer_to((*path, name)), "not asked for"

    def _fields(
        self, kind: GraphQLCompositeType, selections: Sequence[SelectionNode]
    ) -> dict[str, list[FieldNode]]:
        """By the name in the answer; of fragments only those that can apply."""
        found: dict[str, list[FieldNode]] = {}
        for one in selections:
            if isinstance(one, FieldNode):
                found.setdefault(one.alias.value if one.alias else one.name.value, []).append(one)
                continue
            part = self._fragments[one.name.value] if isinstance(one, FragmentSpreadNode) else one
            wanted = part.type_condition and self._schema.get_type(part.type_condition.name.value)
            if (
                wanted is None
                or wanted is kind
                or is_abstract_type(kind)
                or self._is_a(wanted, kind)
            ):
                for name, fields in self._fields(kind, part.selection_set.selections).items():
                    found.setdefault(name, []).extend(fields)
        return found

    def _is_a(self, wanted: Any, kind: Any) -> bool:
        return (is_interface_type(wanted) or is_abstract_type(wanted)) and self._schema.is_sub_type(
            wanted, kind
        )


def _leaf(kind: Any, told: Any, path: tuple[str | int, ...]) -> Iterator[Fault]:
    if is_enum_type(kind):
        if told not in kind.values:
            yield pointer_to(path), f"{short(told)} is no {kind}"
    elif (plain := PLAIN.get(kind.name)) and (
        not isinstance(told, plain) or (isinstance(told, bool) and kind.name != "Boolean")
    ):
        yield pointer_to(path), f"{short(told)} is no {kind}"
