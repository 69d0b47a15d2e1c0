"""Lets the API pages read docstrings and annotations as this package writes them; an extension of griffe, which reads the code.

Four habits of the code are not griffe's: one line of `Args:` may explain several arguments (`low, high: ...`), the fields of a
NamedTuple are the arguments of its constructor, the second part of `Float[Tensor, "P A"]` is text and never a name, and a default
may be that of another constructor (`eta: float = CreditOptions.eta`).
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import griffe

QUOTES = " '\""
SHAPED = {"Float", "Int", "Bool", "UInt8", "Shaped", "Num", "Integer"}
JOINED = re.compile(
    r"^(?P<indent> +)(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)+): (?P<text>.*(?:\n(?P=indent) +\S.*)*)$", flags=re.MULTILINE
)


def apart(docstring: str) -> str:
    """The docstring, with one entry for each argument that shares a line of `Args:` with others."""

    def entries(match: re.Match[str]) -> str:
        return "\n".join(f"{match['indent']}{name}: {match['text']}" for name in match["names"].split(", "))

    head, found, rest = docstring.partition("\nArgs:\n")
    section, blank, after = rest.partition("\n\n")
    return head + found + JOINED.sub(entries, section) + blank + after


def quote_shapes(annotation: object) -> None:
    """Make text of the shape in each `Float[Tensor, ...]`, in place."""
    if isinstance(annotation, griffe.ExprTuple | griffe.ExprList):
        parts = annotation.elements
    elif isinstance(annotation, griffe.ExprSubscript):
        shape = annotation.slice
        if str(annotation.left) in SHAPED and isinstance(shape, griffe.ExprTuple):
            shape.elements[1] = f'"{str(shape.elements[1]).strip(QUOTES)}"'
        parts = [shape]
    elif isinstance(annotation, griffe.ExprBinOp):
        parts = [annotation.left, annotation.right]
    else:
        return
    for part in parts:
        quote_shapes(part)


class AsWritten(griffe.Extension):
    """The four habits."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Split joined arguments of a docstring."""
        if obj.docstring:
            obj.docstring.value = apart(obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Give a NamedTuple the constructor that Python gives it."""
        if any(str(base) == "NamedTuple" for base in cls.bases):
            fields = [member for member in cls.members.values() if member.is_attribute and "instance-attribute" in member.labels]
            keyword = griffe.ParameterKind.positional_or_keyword
            parameters = [griffe.Parameter(f.name, annotation=f.annotation, kind=keyword, default=f.value) for f in fields]
            cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*parameters), returns="None"))

    def on_function(self, *, func: griffe.Function, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Quote the shapes of arguments and results; show the value of a default that is a field of a dataclass."""
        for parameter in func.parameters:
            quote_shapes(parameter.annotation)
            if isinstance(parameter.default, griffe.ExprAttribute):
                with suppress(KeyError):
                    field = loader.modules_collection[parameter.default.canonical_path]
                    parameter.default = getattr(field, "value", None) or parameter.default
        quote_shapes(func.returns)

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:
        """Quote the shapes of fields."""
        quote_shapes(attr.annotation)
