"""Parameters as people write them: pydantic's `Field` as a default, and annotations that are text."""

import dataclasses
import enum
import functools
import inspect
from typing import Annotated, Any

import pytest
from pydantic import Field

from durable_swarm.errors import ConfigurationError
from durable_swarm.schema import BadArguments, accepted, check_arguments, tool_schema, wants_context


def parameters(f: Any) -> dict[str, Any]:
    """Give the schema of the function's parameters."""
    schema: dict[str, Any] = tool_schema(f)["function"]["parameters"]
    return schema


def greet(name: str) -> str:
    """Greet."""
    return name


class Kiosk:
    """Sells in sizes of its own."""

    class Size(enum.Enum):
        """One size."""

        S = "s"

    def sell(self, size: "Size"): ...

    @classmethod
    def give(cls, size: "Size"): ...

    @staticmethod
    def lend(size: "Size"): ...

    def __call__(self, size: "Size"): ...


class Branch(Kiosk):
    """Sells the same."""


class TestFieldsAsDefaults:
    def test_say_what_the_model_is_told(self):
        """Bounds and descriptions reach the schema; what has a default or makes one is optional."""

        def f(
            query: str = Field(description="what to look for"),
            tags: list[str] = Field(default_factory=list),
            limit: int = Field(default=5, ge=1, le=10, description="how many"),
            page: Annotated[int, Field(default=1, ge=1)] = 2,
            size: Annotated[int, Field(default=7)] = Field(lt=9),
            anything=Field(description="free"),
        ):
            """Do."""

        described = parameters(f)
        assert described["required"] == ["query", "size", "anything"]
        properties = described["properties"]
        assert properties["query"] == {"type": "string", "description": "what to look for"}
        assert (properties["limit"]["minimum"], properties["limit"]["maximum"]) == (1, 10)
        assert properties["size"]["exclusiveMaximum"] == 9
        assert properties["anything"] == {"description": "free"}

    def test_give_the_function_real_values(self):
        """A function gets the default and never the `Field`; a list that is made is a new one each time."""

        def f(
            tags: list[str] = Field(default_factory=list),
            limit: int = Field(5, ge=1),
            note: str = Field(default=None),
            when: Annotated[int, Field(default_factory=lambda: 3)] = Field(default=4),
            size: Annotated[int, Field(default=7)] = ...,
        ): ...

        first, second = check_arguments(f, ""), check_arguments(f, "{}")
        assert first == second == {"tags": [], "limit": 5, "note": None, "when": 4}
        assert first["tags"] is not second["tags"]
        with pytest.raises(BadArguments, match="limit"):
            check_arguments(f, '{"limit": 0}')

    def test_in_annotations_may_give_the_default(self):
        """A default that stands in the annotation alone counts, as it does for pydantic."""

        def f(
            limit: Annotated[int, Field(default=5, ge=1)], tags: Annotated[list[str], Field(default_factory=list)]
        ): ...

        assert tool_schema(f)["function"]["parameters"]["required"] == []
        assert check_arguments(f, "{}") == {"limit": 5, "tags": []}

    def test_reach_rules_for_approvals(self):
        """A rule that looks at an argument sees the default, not the `Field`."""

        def f(amount: int = Field(5), reason: str = Field(description="why")): ...

        def rule(amount): ...

        assert accepted(rule, f, check_arguments(f, '{"reason": "x"}')) == {"amount": 5}

    def test_that_mean_something_else_are_refused(self):
        """An alias, which no call could use, and a dataclass's field are one error each."""
        made: Any = dataclasses.field(default_factory=list)

        def aliased(query: str = Field(alias="q")): ...
        def validated(query: Annotated[str, Field(validation_alias="q")]): ...
        def foreign(query: list[str] = made): ...

        for f in (aliased, validated, foreign):
            with pytest.raises(ConfigurationError, match=f"tool {f.__name__}: the parameter query"):
                tool_schema(f)


class TestTextAnnotations:
    def test_may_name_types_of_their_class(self):
        """A type that is written in a class is found for the methods of that class, of its bases and of its objects."""
        for f in (Kiosk().sell, Kiosk.give, Kiosk.lend, Branch().sell, Branch.give, Kiosk()):
            assert parameters(f)["properties"] == {
                "size": {"type": "string", "enum": ["s"], "description": "One size."}
            }

    def test_may_name_types_of_a_wrapper(self):
        """What the wrapper of another function declares is looked up where the wrapper was written, too."""

        class Local(enum.Enum):
            A = "a"

        @functools.wraps(greet)
        def wrapper(kind):
            return Local(kind)

        wrapper.__signature__ = inspect.Signature(
            [inspect.Parameter("kind", inspect.Parameter.KEYWORD_ONLY, annotation="Local")]
        )
        assert parameters(wrapper)["properties"] == {"kind": {"type": "string", "enum": ["a"]}}

    def test_that_nobody_can_resolve_are_refused(self):
        """Unknown names, free text and failing code are one error that names tool, parameter and annotation."""

        class Unseen(enum.Enum):
            B = "b"

        def local(it: "Unseen"): ...
        def unknown(it: "Missing"): ...  # noqa: F821
        def text(it: "the city to look in"): ...  # noqa: F722
        def code(it: "1 / 0"): ...
        def nested(it: list["Missing"]): ...  # noqa: F821

        for f, part in ((local, "Unseen"), (unknown, "Missing"), (text, "city"), (code, "1 / 0"), (nested, "Missing")):
            with pytest.raises(ConfigurationError, match=f"tool {f.__name__}: the parameter it .*{part}"):
                tool_schema(f)

    def test_do_not_matter_where_the_model_gives_nothing(self):
        """The context variables, what a partial has bound and what a function returns may name anything."""

        def f(a: int, context_variables: "Missing", key: "Missing" = None) -> "Missing":  # noqa: F821
            """Do."""

        schema = tool_schema(functools.partial(f, key="secret"))
        assert schema["function"]["parameters"]["properties"] == {"a": {"type": "integer"}}
        assert wants_context(f)
