"""GitHub's description of its REST API and webhooks, as a judge: is this request, answer or webhook
one of GitHub's?

openapi-core judges by a description of only the paths that are asked for: the whole one has 13 MB
and 800 paths.
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

from fidelity.finding import pointer_to, short
from fidelity.invented import Invented

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
    """One method on one path, as the description names it."""

    method: str
    template: str
    variables: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


@dataclass(kw_only=True)
class DescribedRequest:
    """A request in the form that openapi-core asks for."""

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
    """An answer in the form that openapi-core asks for."""

    status_code: int
    data: bytes
    headers: Mapping[str, str]

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "application/json").lower()


class Description:
    """`document` is GitHub's; `paths` are the requests (method, path) that will be asked about."""

    def __init__(self, document: Json, paths: Iterable[tuple[str, str]] = ()) -> None:
        self._document = document
        self._templates = [(template, self._pattern(template)) for template in document["paths"]]
        self._operations = {pair: self._find(*pair) for pair in dict.fromkeys(paths)}

    def operation(self, method: str, path: str) -> Operation | None:
        """What the description calls this; None when it does not know it."""
        if (method, path) not in self._operations:
            self._operations[method, path] = self._find(method, path)
        return self._operations[method, path]

    def _pattern(self, template: str) -> re.Pattern[str]:
        """A template as a pattern for paths; a variable may hold slashes where the description says
        so."""
        said = [one for one in self._document["paths"][template].values() if isinstance(one, dict)]
        variables = [
            self._resolved(one) for operation in said for one in operation.get("parameters", ())
        ]
        many = {one["name"] for one in variables if one.get("x-multi-segment")}
        parts = enumerate(re.split(r"\{([^}]+)\}", template))
        forms = (
            ("(.+)" if part in many else "([^/]+)") if odd % 2 else re.escape(part)
            for odd, part in parts
        )
        return re.compile("".join(forms))

    def _find(self, method: str, path: str) -> Operation | None:
        """The template with the fewest variables wins, and of those the one whose variables are the
        shortest."""
        found = []
        for template, pattern in self._templates:
            if (match := pattern.fullmatch(path)) and method.lower() in self._document["paths"][
                template
            ]:
                names = re.findall(r"\{([^}]+)\}", template)
                variables = {
                    name: unquote(text) for name, text in zip(names, match.groups(), strict=True)
                }
                weight = (len(variables), sum(len(text) for text in variables.values()))
                found.append((weight, template, variables))
        if not found:
            return None
        _, template, variables = min(found, key=lambda one: one[0])
        return Operation(method=method, template=template, variables=variables)

    @cached_property
    def _reduced(self) -> SchemaPath:
        wanted = {found.template for found in self._operations.values() if found}
        paths = {template: self._document["paths"][template] for template in wanted}
        return SchemaPath.from_dict({**self._document, "paths": paths, "x-webhooks": {}})

    @cached_property
    def _requests(self) -> V30RequestValidator:
        return V30RequestValidator(self._reduced, forbid_unspecified_additional_properties=True)

    @cached_property
    def _responses(self) -> V30ResponseValidator:
        return V30ResponseValidator(self._reduced)

    # ── the judgements ──

    def of_request(self, request: DescribedRequest) -> Iterator[Fault]:
        """What is wrong with a request: parameters, body, and whatever the description does not
        know."""
        for error in self._requests.iter_errors(request):
            yield from _faults(error)
        said = self._document["paths"][request.operation.template][request.method]
        known = {
            one["name"]
            for one in map(self._resolved, said.get("parameters", ()))
            if one["in"] == "query"
        }
        for name in request.parameters.query:
            if name not in known:
                yield f"?{name}", "the description knows no such query parameter"
        if request.body and "requestBody" not in said:
            yield "", "the description knows no body here"

    def of_answer(self, request: DescribedRequest, response: Response) -> Iterator[Fault]:
        """What is wrong with an answer. An error that an operation does not list has GitHub's usual
        form."""
        said = self._document["paths"][request.operation.template][request.method]
        if str(response.status_code) not in said["responses"] and response.status_code in (
            400,
            401,
            403,
            404,
            422,
        ):
            yield from self.of_data(
                _json(response.data), VALIDATION_ERRORS if response.status_code == 422 else [ERROR]
            )
            return
        for error in self._responses.iter_errors(request, response):
            yield from _faults(error)
        content = self._resolved(said["responses"].get(str(response.status_code), {})).get(
            "content", {}
        )
        schema = content.get("application/json", {}).get("schema")
        if schema and response.content_type.startswith("application/json"):
            yield from self._invented.fields([schema], _json(response.data))

    def of_webhook(self, event: str, body: Any) -> Iterator[Fault]:
        """What is wrong with a webhook's body."""
        action = body.get("action") if isinstance(body, dict) else None
        name = "-".join(filter(None, (event, action))).replace("_", "-")
        if (said := self._document["x-webhooks"].get(name)) is None:
            yield "", f"the description knows no webhook {name}"
            return
        content = said["post"]["requestBody"]["content"]["application/json"]["schema"]
        yield from self._judge(content, body)
        yield from self._invented.fields([content], body)

    def of_data(self, data: Any, references: Sequence[str]) -> Iterator[Fault]:
        """Whether data fits one of these parts of the description."""
        schema = (
            {"$ref": references[0]}
            if len(references) == 1
            else {"anyOf": [{"$ref": one} for one in references]}
        )
        yield from self._judge(schema, data)

    def _judge(self, schema: Json, data: Any) -> Iterator[Fault]:
        rooted = _rooted(schema)
        validator = OAS30Validator(
            rooted, registry=self._registry, format_checker=oas30_format_checker
        )
        for error in validator.iter_errors(data):
            yield _told(error)

    @cached_property
    def _registry(self) -> Registry[Any]:
        return Registry().with_resource(
            MEMBER, Resource(contents=self._document, specification=DRAFT4)
        )

    @cached_property
    def _invented(self) -> Invented:
        return Invented(self._resolved)

    def _resolved(self, part: Json) -> Json:
        found: Any = part
        while "$ref" in found:
            reference = found["$ref"]
            found = self._document
            for step in reference.removeprefix("#/").split("/"):
                found = found[step]
        return found


def _rooted(part: Any) -> Any:
    """A part of the description on its own: its references lead into the registry."""
    if isinstance(part, dict):
        return {
            key: MEMBER + value if key == "$ref" and isinstance(value, str) else _rooted(value)
            for key, value in part.items()
        }
    return [_rooted(one) for one in part] if isinstance(part, list) else part


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode("utf-8", "replace")


def _faults(error: Exception) -> Iterator[Fault]:
    """An error of openapi-core, and what lies behind it, as pointer and reason."""
    cause = error
    while cause.__cause__ is not None and not isinstance(cause, InvalidSchemaValue):
        cause = cause.__cause__
    if isinstance(cause, InvalidSchemaValue):
        name = f"?{error.name}" if hasattr(error, "name") else ""
        for one in cause.schema_errors:
            pointer, reason = _told(one)
            yield name + pointer, reason
    else:
        yield "", f"{type(error).__name__}: {cause}"


def _told(error: ValidationError) -> Fault:
    """The most telling of what is wrong: deep inside of `anyOf` and `oneOf`, where they apply."""
    deepest = best_match([error]) or error
    told = deepest.message.replace(repr(deepest.instance), short(deepest.instance))
    return pointer_to(deepest.absolute_path), told
