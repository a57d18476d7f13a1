"""GraphQL: the documents of Osiris and the data of devhub, compared with GitHub's schema. No
document is executed."""

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
from fidelity.finding import CheckOutcome, build_pointer, shorten
from fidelity.recordings import RecordedRequest, Recordings
from fidelity.rest import GRAPHQL

SCALAR_TYPES: Mapping[str, type | tuple[type, ...]] = {
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


def check_documents(recordings: Recordings) -> CheckOutcome:
    """Check that every GraphQL document of Osiris is valid, and that its variables are those that
    it declares."""
    outcome = CheckOutcome(
        check="graphql documents", promise="what Osiris asks GraphQL for is in GitHub's schema"
    )
    names = set()
    for record in recordings.requests:
        if (
            record.path != GRAPHQL
            or record.by != "osiris"
            or not record.test.startswith("tests/flow/")
        ):
            continue
        outcome.checked_count += 1
        where, document, body = _parse_request(record)
        names.add(where)
        if document is None:
            outcome.add_violation(where, "the document cannot be parsed")
            continue
        for reason in _find_document_faults(packages.load_graphql_schema(), document, body):
            outcome.add_violation(where, reason)
    outcome.checked_what = f"requests with {len(names)} documents"
    return outcome


def check_answers(recordings: Recordings) -> CheckOutcome:
    """Check that every GraphQL answer of devhub has the shape that its document requests."""
    outcome = CheckOutcome(
        check="graphql answers", promise="what devhub answers over GraphQL has the schema's types"
    )
    for record in recordings.requests:
        if record.path != GRAPHQL or not record.status:
            continue
        outcome.checked_count += 1
        where, document, _ = _parse_request(record)
        for pointer, reason in _find_answer_faults(document, record):
            outcome.add_violation(f"{where} {record.status}", reason, pointer)
    outcome.checked_what = "answers"
    return outcome


def _parse_request(record: RecordedRequest) -> tuple[str, DocumentNode | None, dict[str, Any]]:
    body = json.loads(record.body)
    try:
        document = parse(body.get("query") or "")
    except GraphQLError:
        return "POST /graphql", None, body
    name = next((d.name.value for d in _list_operations(document) if d.name), "unnamed")
    return f"POST /graphql {name}", document, body


def _list_operations(document: DocumentNode) -> list[OperationDefinitionNode]:
    return [
        definition
        for definition in document.definitions
        if isinstance(definition, OperationDefinitionNode)
    ]


def _find_document_faults(
    schema: GraphQLSchema, document: DocumentNode, body: Mapping[str, Any]
) -> Iterator[str]:
    if errors := validate(schema, document):
        yield from (error.message for error in errors)
        return
    for operation in _list_operations(document):
        variables = get_variable_values(
            schema, operation.variable_definitions, body.get("variables") or {}
        )
        if isinstance(variables, list):
            yield from (error.message for error in variables)


def _find_answer_faults(document: DocumentNode | None, record: RecordedRequest) -> Iterator[Fault]:
    answer = json.loads(record.answer)
    if record.status != 200:
        yield from Description(packages.load_openapi()).find_data_faults(
            answer, ["#/components/schemas/basic-error"]
        )
        return
    errors = answer.get("errors", [])
    for error in errors:
        if not isinstance(error.get("message"), str):
            yield "/errors/*", "an error without a message"
    if document is None or validate(packages.load_graphql_schema(), document):
        if not errors:
            yield "", "GitHub would refuse this document"
        return
    [operation] = _list_operations(document)
    root = packages.load_graphql_schema().get_root_type(operation.operation)
    if root is None or answer.get("data") is None:
        if not errors:
            yield "/data", "neither data nor errors"
        return
    validator = DataValidator(packages.load_graphql_schema(), document)
    yield from validator.check_object(root, [operation], answer["data"], ("data",))


class DataValidator:
    """A comparison of data with the selections that requested it."""

    def __init__(self, schema: GraphQLSchema, document: DocumentNode) -> None:
        self._schema = schema
        self._fragments = {
            definition.name.value: definition
            for definition in document.definitions
            if isinstance(definition, FragmentDefinitionNode)
        }

    def check_value(
        self, kind: GraphQLType, nodes: Sequence[FieldNode], value: Any, path: tuple[str | int, ...]
    ) -> Iterator[Fault]:
        if isinstance(kind, GraphQLNonNull):
            kind = kind.of_type
            if value is None:
                yield build_pointer(path), f"null, but the schema says {kind}!"
        if value is None:
            return
        if isinstance(kind, GraphQLList):
            if not isinstance(value, list):
                yield build_pointer(path), f"{shorten(value)} is no list"
                return
            for index, item in enumerate(value):
                yield from self.check_value(kind.of_type, nodes, item, (*path, index))
        elif is_composite_type(kind):
            yield from self.check_object(kind, nodes, value, path)
        else:
            yield from _check_leaf(kind, value, path)

    def check_object(
        self,
        kind: Any,
        nodes: Sequence[FieldNode | OperationDefinitionNode],
        value: Any,
        path: tuple[str | int, ...],
    ) -> Iterator[Fault]:
        if not isinstance(value, dict):
            yield build_pointer(path), f"{shorten(value)} is no {kind}"
            return
        if is_abstract_type(kind):
            actual_type = self._schema.get_type(str(value.get("__typename")))
            if is_object_type(actual_type) and self._schema.is_sub_type(kind, actual_type):
                kind = actual_type
        fields_by_name = self._collect_fields(
            kind,
            [
                selection
                for node in nodes
                if node.selection_set
                for selection in node.selection_set.selections
            ],
        )
        for name, fields in fields_by_name.items():
            if name not in value:
                if not is_abstract_type(kind) or fields[0].name.value in getattr(
                    kind, "fields", {}
                ):
                    yield build_pointer((*path, name)), "asked for, but not there"
            elif fields[0].name.value != "__typename":
                declared = getattr(kind, "fields", {}).get(fields[0].name.value)
                if declared is not None:
                    yield from self.check_value(declared.type, fields, value[name], (*path, name))
        for name in value:
            if name not in fields_by_name:
                yield build_pointer((*path, name)), "not asked for"

    def _collect_fields(
        self, kind: GraphQLCompositeType, selections: Sequence[SelectionNode]
    ) -> dict[str, list[FieldNode]]:
        """Return the fields by their names in the answer; of fragments, only those that can
        apply."""
        fields_by_name: dict[str, list[FieldNode]] = {}
        for selection in selections:
            if isinstance(selection, FieldNode):
                fields_by_name.setdefault(
                    selection.alias.value if selection.alias else selection.name.value,
                    [],
                ).append(selection)
                continue
            fragment = (
                self._fragments[selection.name.value]
                if isinstance(selection, FragmentSpreadNode)
                else selection
            )
            condition = fragment.type_condition and self._schema.get_type(
                fragment.type_condition.name.value
            )
            if (
                condition is None
                or condition is kind
                or is_abstract_type(kind)
                or self._is_subtype(condition, kind)
            ):
                for name, fields in self._collect_fields(
                    kind, fragment.selection_set.selections
                ).items():
                    fields_by_name.setdefault(name, []).extend(fields)
        return fields_by_name

    def _is_subtype(self, condition: Any, kind: Any) -> bool:
        return (
            is_interface_type(condition) or is_abstract_type(condition)
        ) and self._schema.is_sub_type(condition, kind)


def _check_leaf(kind: Any, value: Any, path: tuple[str | int, ...]) -> Iterator[Fault]:
    if is_enum_type(kind):
        if value not in kind.values:
            yield build_pointer(path), f"{shorten(value)} is no {kind}"
    elif (expected_type := SCALAR_TYPES.get(kind.name)) and (
        not isinstance(value, expected_type) or (isinstance(value, bool) and kind.name != "Boolean")
    ):
        yield build_pointer(path), f"{shorten(value)} is no {kind}"
