"""Parameters as JSON schema, by pydantic."""

from __future__ import annotations

import json
import sys
import typing
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typing_extensions
from pydantic import ConfigDict, PydanticUserError, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from durable_swarm.errors import ConfigurationError
from durable_swarm.schema.signatures import ABSENT, CONTEXT, Parameter, Signature

Adapters = Mapping[str, TypeAdapter[Any]]
"""Pydantic's adapter of each annotated parameter, by parameter name."""

_SWARM_TYPES: dict[object, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "array",
    dict: "object",
    type(None): "null",
}

_LAX = ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False)
_DEFINITIONS = "#/$defs/"


def adapters_of(signature: Signature) -> Adapters:
    """Make an adapter for each annotated parameter that the model fills.

    Raises `ConfigurationError` for an annotation without JSON schema, or one that cannot be resolved.
    """
    for parameter in signature.open:
        if parameter.problem:
            raise ConfigurationError(
                f"tool {signature.name}: the parameter {parameter.name} cannot be used: {parameter.problem}"
            )
    annotated = [parameter for parameter in signature.open if parameter.annotation is not ABSENT]
    return {parameter.name: _adapter(signature.name, parameter) for parameter in annotated}


def describe(signature: Signature, parameters: list[Parameter], adapters: Adapters) -> dict[str, Any]:
    """Build Swarm's dictionary with these parameters of the function."""
    properties, definitions = _properties(parameters, adapters)
    for parameter in parameters:
        if text := _noted_description(parameter.annotation) or signature.documented.get(parameter.name):
            properties[parameter.name]["description"] = text
    required = [parameter.name for parameter in parameters if parameter.required]
    accepted = {"type": "object", "properties": properties, "required": required}
    if definitions:
        accepted["$defs"] = definitions
    function = {"name": signature.name, "description": signature.description, "parameters": accepted}
    return {"type": "function", "function": function}


def label(schema: dict[str, Any]) -> str:
    """Describe in a few words the values that a parameter of this schema takes."""
    if "enum" in schema:
        return " or ".join(map(json.dumps, schema["enum"]))
    if "const" in schema:
        return json.dumps(schema["const"])
    if "anyOf" in schema:
        return " or ".join(label(choice) for choice in schema["anyOf"])
    return str(schema.get("type", "object" if "$ref" in schema else "any value"))


def _plain_type(annotation: object) -> str | None:
    """Return the type's name in Swarm, or None for an annotation that Swarm does not know."""
    if annotation is ABSENT:
        return "string"
    return _SWARM_TYPES.get(annotation) if isinstance(annotation, type) else None


class Schemas(GenerateJsonSchema):
    """Pydantic's JSON schemas, without its warnings."""

    def emit_warning(self, kind: object, detail: str) -> None:
        """Stay silent: a nested default without a JSON form is left out, which does no harm."""


def _adapter(tool: str, parameter: Parameter) -> TypeAdapter[Any]:
    try:
        adapter = lenient_adapter(parameter.annotation)
        adapter.json_schema(schema_generator=Schemas)
        return adapter
    # Also raised by the hooks of a user's own type.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"tool {tool}: the parameter {parameter.name} is annotated with {parameter.annotation!r}, "
            f"which has no JSON schema ({reason}); use plain types, a dataclass, a TypedDict or a pydantic model"
        ) from error


def lenient_adapter(annotation: Any) -> TypeAdapter[Any]:
    """Return pydantic's adapter of a type, with the tolerance that a model's values need where the type has none."""
    annotation = _known_to_pydantic(annotation)
    try:
        return TypeAdapter(annotation, config=_LAX)
    except PydanticUserError as error:
        # Models, dataclasses and typed dictionaries bring their own configuration.
        if error.code != "type-adapter-config-unused":
            raise
        return TypeAdapter(annotation)


def _known_to_pydantic(annotation: Any, inside: frozenset[Any] = frozenset()) -> Any:
    """Replace `typing.TypedDict` classes in the annotation, which pydantic refuses before Python 3.12."""
    if sys.version_info >= (3, 12):
        return annotation
    if typing.is_typeddict(annotation) and annotation not in inside:
        return _rebuilt_typed_dict(annotation, inside | {annotation})
    origin, arguments = get_origin(annotation), get_args(annotation)
    if not arguments or origin is Literal:
        return annotation
    if origin is Annotated:
        return Annotated[(_known_to_pydantic(arguments[0], inside), *annotation.__metadata__)]
    replaced = tuple(_known_to_pydantic(argument, inside) for argument in arguments)
    if replaced == arguments:
        return annotation
    return (Union if origin is UnionType else origin)[replaced if len(replaced) > 1 else replaced[0]]


def _rebuilt_typed_dict(kind: Any, inside: frozenset[Any]) -> object:
    fields: dict[str, object] = {}
    for name, annotation in typing.get_type_hints(kind, include_extras=True).items():
        known = _known_to_pydantic(annotation, inside)
        marked = get_origin(annotation) in (typing.Required, typing.NotRequired)
        fields[name] = known if marked or name in kind.__required_keys__ else typing.NotRequired[known]
    make: Any = typing_extensions.TypedDict
    rebuilt = make(kind.__name__, fields)
    rebuilt.__doc__, rebuilt.__module__, rebuilt.__qualname__ = kind.__doc__, kind.__module__, kind.__qualname__
    return rebuilt


def _properties(parameters: list[Parameter], adapters: Adapters) -> tuple[dict[str, Any], dict[str, object]]:
    """Return the schemas by parameter name, and the definitions they refer to.

    `context_variables` needs no annotation that pydantic knows, because it never comes from the model.
    """
    rich = [p.name for p in parameters if _plain_type(p.annotation) is None and p.name != CONTEXT]
    found, shared = TypeAdapter.json_schemas(
        [(name, "validation", adapters[name]) for name in rich], schema_generator=Schemas
    )
    tidy = _Tidy(found.values(), shared.get("$defs", {}))
    properties: dict[str, object] = {p.name: {"type": _plain_type(p.annotation) or "object"} for p in parameters}
    return properties | {name: tidy(found[name, "validation"]) for name in rich}, tidy.kept()


class _Tidy:
    """Pydantic's schema simplified for models: without titles, and with types written in place.

    Many servers cannot follow references, so a definition that is used once replaces its reference, and so do all
    enumerations, which are short. Other definitions stay shared; recursive ones have to.
    """

    def __init__(self, schemas: Iterable[Any], definitions: dict[str, Any]) -> None:
        self._definitions = definitions
        uses = Counter(_references([*schemas, *definitions.values()]))
        self._shared = {name for name, text in definitions.items() if uses[name] > 1 and "enum" not in text}

    def __call__(self, node: object) -> Any:
        if isinstance(node, list):
            return [self(item) for item in node]
        if not isinstance(node, dict):
            return node
        kept = [key for key in node if key not in ("title", "discriminator")]
        tidied = {key: self._keyword(key, node[key]) for key in kept}
        name = _referred(node)
        if name is None or name in self._shared:
            return tidied
        del tidied["$ref"]
        return {**self(self._definitions[name]), **tidied}

    def kept(self) -> dict[str, object]:
        """Return the definitions that are still referred to, by name."""
        return {name: self(schema) for name, schema in self._definitions.items() if name in self._shared}

    def _keyword(self, key: str, value: Any) -> Any:
        if key in ("default", "const", "enum", "examples"):
            return value
        if key in ("properties", "patternProperties"):
            return {name: self(schema) for name, schema in value.items()}
        return self(value)


def _references(node: object) -> Iterator[str]:
    if isinstance(node, list):
        for item in node:
            yield from _references(item)
    elif isinstance(node, dict):
        if name := _referred(node):
            yield name
        yield from _references(list(node.values()))


def _referred(node: Mapping[str, object]) -> str | None:
    target = node.get("$ref")
    return target.removeprefix(_DEFINITIONS) if isinstance(target, str) and target.startswith(_DEFINITIONS) else None


def _noted_description(annotation: object) -> str | None:
    """Return the text in `Annotated[int, "text"]` or `Annotated[int, Field(description="text")]`."""
    for note in getattr(annotation, "__metadata__", ()):
        if isinstance(note, str):
            return note
        if isinstance(note, FieldInfo) and note.description:
            return note.description
    return None
