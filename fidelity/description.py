"""GitHub's description of its REST API and webhooks, as a validator of requests, answers and
webhooks.

openapi-core validates with a description that contains only the needed paths: the whole one has 13
MB and 800 paths.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl, unquote

from jsonschema.exceptions import ValidationError, best_match
from jsonschema_path import SchemaPath
from openapi_core import V30RequestValidator, V30ResponseValidator
from openapi_core.datatypes import RequestParameters
from openapi_core.validation.schemas.exceptions import InvalidSchemaValue
from openapi_schema_validator import OAS30Validator, oas30_format_checker
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4
from werkzeug.datastructures import Headers, ImmutableMultiDict

from fidelity.finding import build_pointer, shorten
from fidelity.invented import UndocumentedFields

Json = Mapping[str, Any]
Fault = tuple[str, str]
"""(JSON pointer, reason)"""

HOST = "https://api.github.com"
ERROR = "#/components/schemas/basic-error"
VALIDATION_ERRORS = (
    "#/components/schemas/validation-error",
    "#/components/schemas/validation-error-simple",
)
MEMBER = "https://fidelity.invalid/description"


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One method on one path, in the terms of the description."""

    method: str
    template: str
    variables: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


@dataclass(kw_only=True)
class DescribedRequest:
    """A request in the form that openapi-core expects."""

    operation: Operation
    query: str
    body: bytes
    content_type: str
    headers: Mapping[str, str]
    host_url: str = HOST
    parameters: RequestParameters = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = RequestParameters(
            path=dict(self.operation.variables),
            query=ImmutableMultiDict(parse_qsl(self.query, keep_blank_values=True)),
            header=Headers(dict(self.headers)),
            cookie=ImmutableMultiDict(),
        )

    @property
    def method(self) -> str:
        return self.operation.method.lower()

    @property
    def path(self) -> str:
        return self.operation.template

    path_pattern = path


@dataclass(kw_only=True)
class Response:
    """An answer in the form that openapi-core expects."""

    status_code: int
    data: bytes
    headers: Mapping[str, str]

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "application/json").lower()


class Description:
    """`document` is GitHub's description; `paths` are the requests (method, path) that will be
    checked."""

    def __init__(self, document: Json, paths: Iterable[tuple[str, str]] = ()) -> None:
        self._document = document
        self._templates = [
            (template, self._build_pattern(template)) for template in document["paths"]
        ]
        self._operations = {pair: self._find_operation(*pair) for pair in dict.fromkeys(paths)}

    def get_operation(self, method: str, path: str) -> Operation | None:
        """Return the operation of a request; None if the description does not know it."""
        if (method, path) not in self._operations:
            self._operations[method, path] = self._find_operation(method, path)
        return self._operations[method, path]

    def _build_pattern(self, template: str) -> re.Pattern[str]:
        """Return a template as a pattern for paths. A variable may contain slashes if the
        description says so."""
        operations = [
            operation
            for operation in self._document["paths"][template].values()
            if isinstance(operation, dict)
        ]
        variables = [
            self._resolve(parameter)
            for operation in operations
            for parameter in operation.get("parameters", ())
        ]
        multi_segment = {
            parameter["name"] for parameter in variables if parameter.get("x-multi-segment")
        }
        parts = enumerate(re.split(r"\{([^}]+)\}", template))
        patterns = (
            ("(.+)" if part in multi_segment else "([^/]+)") if position % 2 else re.escape(part)
            for position, part in parts
        )
        return re.compile("".join(patterns))

    def _find_operation(self, method: str, path: str) -> Operation | None:
        """Return the template with the fewest variables; of several, the one whose variables are
        shortest."""
        matches = []
        for template, pattern in self._templates:
            if (match := pattern.fullmatch(path)) and method.lower() in self._document["paths"][
                template
            ]:
                names = re.findall(r"\{([^}]+)\}", template)
                variables = {
                    name: unquote(text) for name, text in zip(names, match.groups(), strict=True)
                }
                weight = (len(variables), sum(len(text) for text in variables.values()))
                matches.append((weight, template, variables))
        if not matches:
            return None
        _, template, variables = min(matches, key=lambda match: match[0])
        return Operation(method=method, template=template, variables=variables)

    @cached_property
    def _reduced_schema(self) -> SchemaPath:
        templates = {operation.template for operation in self._operations.values() if operation}
        paths = {template: self._document["paths"][template] for template in templates}
        return SchemaPath.from_dict({**self._document, "paths": paths, "x-webhooks": {}})

    @cached_property
    def _request_validator(self) -> V30RequestValidator:
        return V30RequestValidator(
            self._reduced_schema, forbid_unspecified_additional_properties=True
        )

    @cached_property
    def _response_validator(self) -> V30ResponseValidator:
        return V30ResponseValidator(self._reduced_schema)

    # ── validation ──

    def find_request_faults(self, request: DescribedRequest) -> Iterator[Fault]:
        """Yield what is wrong with a request: parameters, body, and anything that the description
        does not know."""
        for error in self._request_validator.iter_errors(request):
            yield from _list_faults(error)
        operation = self._document["paths"][request.operation.template][request.method]
        parameters = {
            parameter["name"]
            for parameter in map(self._resolve, operation.get("parameters", ()))
            if parameter["in"] == "query"
        }
        for name in request.parameters.query:
            if name not in parameters:
                yield f"?{name}", "the description knows no such query parameter"
        if request.body and "requestBody" not in operation:
            yield "", "the description knows no body here"

    def find_answer_faults(self, request: DescribedRequest, response: Response) -> Iterator[Fault]:
        """Yield what is wrong with an answer. An error that an operation does not list must have
        GitHub's usual form."""
        operation = self._document["paths"][request.operation.template][request.method]
        if str(response.status_code) not in operation["responses"] and response.status_code in (
            400,
            401,
            403,
            404,
            422,
        ):
            yield from self.find_data_faults(
                _parse_json(response.data),
                VALIDATION_ERRORS if response.status_code == 422 else [ERROR],
            )
            return
        for error in self._response_validator.iter_errors(request, response):
            yield from _list_faults(error)
        content = self._resolve(operation["responses"].get(str(response.status_code), {})).get(
            "content", {}
        )
        schema = content.get("application/json", {}).get("schema")
        if schema and response.content_type.startswith("application/json"):
            yield from self._undocumented_fields.find([schema], _parse_json(response.data))

    def find_webhook_faults(self, event: str, body: Any) -> Iterator[Fault]:
        """Yield what is wrong with the body of a webhook."""
        action = body.get("action") if isinstance(body, dict) else None
        name = "-".join(filter(None, (event, action))).replace("_", "-")
        if (operation := self._document["x-webhooks"].get(name)) is None:
            yield "", f"the description knows no webhook {name}"
            return
        content = operation["post"]["requestBody"]["content"]["application/json"]["schema"]
        yield from self._validate(content, body)
        yield from self._undocumented_fields.find([content], body)

    def find_data_faults(self, data: Any, references: Sequence[str]) -> Iterator[Fault]:
        """Yield what is wrong with data that must match one of these parts of the description."""
        schema = (
            {"$ref": references[0]}
            if len(references) == 1
            else {"anyOf": [{"$ref": reference} for reference in references]}
        )
        yield from self._validate(schema, data)

    def _validate(self, schema: Json, data: Any) -> Iterator[Fault]:
        schema_with_base = _add_base(schema)
        validator = OAS30Validator(
            schema_with_base, registry=self._registry, format_checker=oas30_format_checker
        )
        for error in validator.iter_errors(data):
            yield _describe_error(error)

    @cached_property
    def _registry(self) -> Registry[Any]:
        return Registry().with_resource(
            MEMBER, Resource(contents=self._document, specification=DRAFT4)
        )

    @cached_property
    def _undocumented_fields(self) -> UndocumentedFields:
        return UndocumentedFields(self._resolve)

    def _resolve(self, part: Json) -> Json:
        resolved: Any = part
        while "$ref" in resolved:
            reference = resolved["$ref"]
            resolved = self._document
            for step in reference.removeprefix("#/").split("/"):
                resolved = resolved[step]
        return resolved


def _add_base(part: Any) -> Any:
    """Return a part of the description by itself; its references lead into the registry."""
    if isinstance(part, dict):
        return {
            key: MEMBER + value if key == "$ref" and isinstance(value, str) else _add_base(value)
            for key, value in part.items()
        }
    return [_add_base(item) for item in part] if isinstance(part, list) else part


def _parse_json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")


def _list_faults(error: Exception) -> Iterator[Fault]:
    """Yield an error of openapi-core, and its causes, as pointer and reason."""
    cause = error
    while cause.__cause__ is not None and not isinstance(cause, InvalidSchemaValue):
        cause = cause.__cause__
    if isinstance(cause, InvalidSchemaValue):
        name = f"?{error.name}" if hasattr(error, "name") else ""
        for schema_error in cause.schema_errors:
            pointer, reason = _describe_error(schema_error)
            yield name + pointer, reason
    else:
        yield "", f"{type(error).__name__}: {cause}"


def _describe_error(error: ValidationError) -> Fault:
    """Return the most specific cause of an error: deep inside `anyOf` and `oneOf`, where they
    apply."""
    deepest = best_match([error]) or error
    message = deepest.message.replace(repr(deepest.instance), shorten(deepest.instance))
    return build_pointer(deepest.absolute_path), message
