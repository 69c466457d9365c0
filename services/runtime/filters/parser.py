"""Filter text to syntax tree: the subset of AIP-160 that Strandline speaks.

``= != < <= > >=``, ``:`` (an array has), ``AND``, ``OR``, ``NOT`` or ``-``, parentheses, terms side by side (AND).
OR binds tighter than AND, as AIP-160 says. A value is a quoted string, a number, ``true``, ``false`` or ``null``.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

from services.runtime.errors import InvalidArgument, invalid_field
from services.runtime.filters.ast import And, Compare, Has, Node, Not, Operator, Or, Path, Scalar
from services.runtime.filters.paths import PATH_PATTERN, parse_path, render_path, unquote
from services.runtime.filters.types import typed

if TYPE_CHECKING:
    from lark import Lark, Token, Tree
    from lark.exceptions import UnexpectedInput

MAX_LENGTH: Final = 4096
"""Characters of a filter."""
MAX_DEPTH: Final = 32
"""Parentheses inside each other."""
MAX_TERMS: Final = 100
"""Comparisons in a filter."""

_GRAMMAR = rf"""
start: expression?
?expression: sequence | sequence ("AND" sequence)+ -> all
?sequence: factor | factor factor+ -> all
?factor: term | term ("OR" term)+ -> any
?term: simple | ("NOT" | "-") simple -> negation
simple: PATH OPERATOR _value -> restriction
      | LPAREN expression ")" -> group
_value: STRING | NUMBER | WORD

LPAREN: "("
PATH: /{PATH_PATTERN}/s
OPERATOR: /[<>!]=|[<>=:]/
STRING: /"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'/s
NUMBER: /-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.])/
WORD: /(?:true|false|null)(?!\w)/
%ignore /[ \t\r\n]+/
"""
_WORDS: Final[Mapping[str, bool | None]] = {"true": True, "false": False, "null": None}


def parse_filter(text: str, field_types: Mapping[Path, frozenset[str]] | None = None) -> Node | None:
    """Return the syntax tree of *text*, or None for an empty filter, which everything matches.

    Args:
        text: at most ``MAX_LENGTH`` characters.
        field_types: the JSON types that the schema allows at a path (see ``typed``).

    Raises:
        InvalidArgument: ``INVALID_FIELD``; the message says what is wrong at which character, counted from 1.
    """
    from lark.exceptions import UnexpectedInput

    if len(text) > MAX_LENGTH:
        raise _refuse(MAX_LENGTH, f"longer than {MAX_LENGTH} characters")
    try:
        text.encode()
        tree = _parser().parse(text)
    except UnicodeEncodeError as error:
        raise _refuse(error.start, "lone surrogate") from None
    except UnexpectedInput as error:
        raise _explain(error, text) from None
    if not tree.children:
        return None
    node = _Builder().build(tree.children[0], 0)
    return typed(node, field_types or {})


@functools.cache
def _parser() -> Lark:
    # Imported and built at first use (60 ms): most processes that import this package never parse a filter.
    from lark import Lark

    return Lark(_GRAMMAR, parser="lalr", lexer="contextual")


class _Builder:
    def __init__(self) -> None:
        self._terms = 0

    def build(self, tree: Tree[Token] | Token, depth: int) -> Node:
        """Build one node; recursion is bounded because each level of parentheses is counted on the way down."""
        tree = cast("Tree[Token]", tree)
        match tree.data:
            case "restriction":
                return self._restriction(*cast("list[Token]", tree.children))
            case "group":
                parenthesis, inner = cast("tuple[Token, Tree[Token]]", tree.children)
                if depth == MAX_DEPTH:
                    raise _refuse(parenthesis.start_pos, f"more than {MAX_DEPTH} parentheses inside each other")
                return self.build(inner, depth + 1)
            case "negation":
                return Not(self.build(tree.children[0], depth))
            case "any":
                return Or(tuple(self.build(child, depth) for child in tree.children))
            case _:
                return And(tuple(self.build(child, depth) for child in tree.children))

    def _restriction(self, name: Token, operator: Token, literal: Token) -> Node:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise _refuse(name.start_pos, f"more than {MAX_TERMS} comparisons")
        path = parse_path(name, field="filter")
        value = _value(literal)
        if operator not in ("=", "!=") and (value is None or (isinstance(value, bool) and operator != ":")):
            raise _refuse(operator.start_pos, f"{render_path(path)}: {literal} takes only = and !=")
        if operator == ":":
            return Has(path, value)
        return Compare(path, cast("Operator", str(operator)), value)


def _value(token: Token) -> Scalar:
    match token.type:
        case "STRING":
            if "*" in re.sub(r"\\.", "", token, flags=re.DOTALL):
                raise _refuse(token.start_pos, r"there are no wildcards yet: write \* for a star")
            try:
                return unquote(token)
            except ValueError as error:
                raise _refuse(token.start_pos, str(error)) from None
        case "NUMBER":
            number = float(token)
            if math.isinf(number):
                raise _refuse(token.start_pos, f"{token} is no IEEE double")
            return number + 0.0  # -0 is 0
        case _:
            return _WORDS[token]


def _explain(error: UnexpectedInput, text: str) -> InvalidArgument:
    # Lark names what it expected differently for a wrong token, a wrong character and a premature end.
    allowed = getattr(error, "expected", None) or getattr(error, "allowed", None) or ()
    if "OPERATOR" in allowed:
        wanted = "one of = != < <= > >= :"
    elif "STRING" in allowed:
        wanted = "a quoted string, a number, true, false or null"
    elif "PATH" in allowed:
        wanted = "a comparison such as data.name = 'x'"
    else:
        wanted = "the end"
    # At the end, Lark gives the place of the last token.
    ended = getattr(getattr(error, "token", None), "type", "") == "$END"
    start = len(text) if ended or error.pos_in_stream is None else error.pos_in_stream
    found = repr(text[start : start + 20]) if start < len(text) else "the end"
    return _refuse(start, f"expected {wanted}, found {found}")


def _refuse(start: int | None, problem: str) -> InvalidArgument:
    return invalid_field("filter", f"{problem} (character {(start or 0) + 1})")
