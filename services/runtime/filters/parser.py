"""Filter text to syntax tree: AIP-160, as ``docs/filters.md`` shows it.

Where AIP-160 leaves a choice: a literal that stands alone is refused (text is looked for with ``search``), null is a
literal, the functions are ``lower`` and ``size`` of a field and ``timestamp`` and ``duration`` of a text, and a key
that is no identifier may also stand in backticks.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, cast

from services.runtime.errors import InvalidArgument, invalid_field
from services.runtime.filters.ast import (
    And,
    Compare,
    Duration,
    Has,
    Instant,
    Like,
    Node,
    Not,
    OfEntity,
    Operator,
    Or,
    Path,
    Present,
    Size,
    Value,
)
from services.runtime.filters.attributes import ATTRIBUTES, OWN_FIELDS
from services.runtime.filters.folding import fold
from services.runtime.filters.moments import read_duration, read_timestamp
from services.runtime.filters.paths import FILTER_PATH_PATTERN, STRING, parse_path, unescape
from services.runtime.filters.shapes import NUMBER, shape_of
from services.runtime.filters.types import FieldTypes, typed

if TYPE_CHECKING:
    from lark import Lark, Token, Tree
    from lark.exceptions import UnexpectedInput

MAX_LENGTH: Final = 4096
"""Characters of a filter."""
MAX_DEPTH: Final = 32
"""Parentheses inside each other."""
MAX_TERMS: Final = 100
"""Comparisons in a filter."""
MAX_STARS: Final = 16
"""Wildcards in a text."""
MAX_SHAPES: Final = 200
"""Shapes whose trees are kept; one of many terms takes about 100 KB."""

# Twice the same: of restrictions, and of the literals that share one field and operator. What follows a literal decides
# what its next token may be, so the two kinds of literals are rules of their own: behind one comes a field, behind the
# other a text, and the lexer must know which.
_GRAMMAR = rf"""
start: expression?
?expression: sequence | sequence ("AND" sequence)+ -> all
?sequence: factor | factor factor+ -> all
?factor: term | term ("OR" term)+ -> any
?term: simple | ("NOT" | MINUS) simple -> negation
?simple: restriction | LPAREN expression ")" -> group
restriction: (PATH | call) OPERATOR argument
           | (PATH | call | STRING | NUMBER | SECONDS | TIMESTAMP) -> alone
?argument: literal | LPAREN choice ")" -> group
literal: STRING | NUMBER | SECONDS | TIMESTAMP | TEXT | STAR | call
call: FUNCTION _arguments ")"
_arguments: (PATH | STRING | NUMBER)? ("," (PATH | STRING | NUMBER))*
?choice: choice_sequence | choice_sequence ("AND" choice_sequence)+ -> all
?choice_sequence: choice_factor | choice_factor choice_factor+ -> all
?choice_factor: choice_term | choice_term ("OR" choice_term)+ -> any
?choice_term: choice_simple | ("NOT" | MINUS) choice_simple -> negation
?choice_simple: choice_literal | LPAREN choice ")" -> group
choice_literal: STRING | NUMBER | SECONDS | TIMESTAMP | TEXT | STAR | choice_call
choice_call: FUNCTION _arguments ")"

LPAREN: "("
MINUS: "-"
STAR: "*"
FUNCTION.2: /(?!(?:AND|OR|NOT)\()[^\W\d][\w.]*\(/
PATH: /{FILTER_PATH_PATTERN}/s
OPERATOR: /[<>!]=|[<>=:]/
STRING: /{STRING}/s
NUMBER: /{NUMBER}(?![\w.]|-[0-9])/
SECONDS.2: /-?[0-9]+(?:\.[0-9]+)?s(?![\w.])/
TIMESTAMP.2: /[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[Tt][0-9:.]+(?:[Zz]|[+-][0-9]{{2}}:[0-9]{{2}})?/
TEXT: /[^\W\d][\w-]*(?:\.[\w-]+)*/
%ignore /[ \t\r\n]+/
"""
_WORDS: Final = {"true": True, "false": False, "null": None}
_KEYWORDS: Final = frozenset({"AND", "OR", "NOT"})
_PIECE: Final = re.compile(r"(?:[^\\*]|\\.)+|\*", re.DOTALL)


def parse_filter(text: str, field_types: FieldTypes | None = None, *, of_entity: bool = False) -> Node | None:
    """Return the syntax tree of *text*, or None for an empty filter, which everything matches.

    Args:
        text: at most ``MAX_LENGTH`` characters.
        field_types: the JSON types that the schema allows at a path (see ``typed``).
        of_entity: whether the entity's own fields may be named (see ``attributes``).

    Raises:
        InvalidArgument: ``INVALID_FIELD``; the message says what is wrong at which character, counted from 1.
    """
    if len(text) > MAX_LENGTH:
        raise _refuse(MAX_LENGTH, f"longer than {MAX_LENGTH} characters")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _refuse(error.start, "lone surrogate") from None
    shape, literals = shape_of(text)
    try:
        return _built(_parsed_shape(shape), literals, field_types, of_entity=of_entity)
    except InvalidArgument:
        # Only in the text itself is everything where a refusal says that it is.
        return _built(_parsed(text), {}, field_types, of_entity=of_entity)


def _built(
    tree: Tree[Token], literals: Mapping[int, str], field_types: FieldTypes | None, *, of_entity: bool
) -> Node | None:
    if not tree.children:
        return None
    builder = _Builder(literals, field_types or {}, of_entity=of_entity)
    return builder.expression(cast("Tree[Token]", tree.children[0]))


def _parsed(text: str) -> Tree[Token]:
    from lark.exceptions import UnexpectedInput

    try:
        return _parser().parse(text)
    except UnexpectedInput as error:
        raise _explain(error, text) from None


_parsed_shape = functools.lru_cache(maxsize=MAX_SHAPES)(_parsed)


@functools.cache
def _parser() -> Lark:
    # Imported and built at first use (60 ms): most processes that import this package never parse a filter.
    from lark import Lark

    return Lark(_GRAMMAR, parser="lalr", lexer="contextual")


class _Builder:
    """Turns the parser's tree into ours; recursion is bounded because each level of parentheses is counted.

    *literals* are the values to read instead of those in the tree, which then is that of the filter's shape.
    """

    def __init__(self, literals: Mapping[int, str], field_types: FieldTypes, *, of_entity: bool) -> None:
        self._literals = literals
        self._field_types = field_types
        self._of_entity = of_entity
        self._terms = 0

    def expression(self, tree: Tree[Token]) -> Node:
        return self._build(tree, self._restriction, 0)

    def _build(self, tree: Tree[Token], leaf: Callable[[Tree[Token], int], Node], depth: int) -> Node:
        children = cast("list[Tree[Token]]", tree.children)
        match tree.data:
            case "group":
                parenthesis, inner = cast("Token", tree.children[0]), children[1]
                if depth == MAX_DEPTH:
                    raise _refuse(parenthesis.start_pos, f"more than {MAX_DEPTH} parentheses inside each other")
                return self._build(inner, leaf, depth + 1)
            case "negation":
                return Not(self._build(children[-1], leaf, depth))
            case "any":
                return Or(tuple(self._build(child, leaf, depth) for child in children))
            case "all":
                return And(tuple(self._build(child, leaf, depth) for child in children))
            case _:
                return leaf(tree, depth)

    def _restriction(self, tree: Tree[Token], depth: int) -> Node:
        if tree.data == "alone":
            raise _refuse_alone(tree)
        field, operator, argument = cast("tuple[Token | Tree[Token], Token, Tree[Token]]", tuple(tree.children))
        function, name = _field(field)
        path, of_entity = self._path(name)

        def compare(literal: Tree[Token], _: int) -> Node:
            self._terms += 1
            if self._terms > MAX_TERMS:
                raise _refuse(name.start_pos, f"more than {MAX_TERMS} comparisons")
            value = _literal(self._given(literal.children[0]))
            node = _comparison(function, name, path, operator, value)
            return _of_entity(typed(node, ATTRIBUTES, "".join)) if of_entity else typed(node, self._field_types)

        return self._build(argument, compare, depth)

    def _given(self, literal: Token | Tree[Token]) -> Token | Tree[Token]:
        """*literal*, or a call with what is in its parentheses, as it stands in the filter."""
        if _is_tree(literal):
            call = cast("Tree[Token]", literal)
            return type(call)(call.data, [self._given(part) for part in call.children])
        token = cast("Token", literal)
        given = self._literals.get(token.start_pos or 0)
        return token if given is None else token.update(value=given)

    def _path(self, name: Token) -> tuple[Path, bool]:
        """The path, and whether it begins at the entity and not at its data."""
        if self._of_entity and (str(name),) in ATTRIBUTES:
            return (str(name),), True
        return parse_path(name, field="filter", others=OWN_FIELDS if self._of_entity else ()), False


class _Star:
    """``*`` without quotes."""


class _Wildcard(tuple[str, ...]):
    """The parts of a text between its wildcards; at least two."""

    __slots__ = ()


_Literal = Value | _Star | _Wildcard


def _comparison(function: str, name: str, path: Path, operator: Token, value: _Literal) -> Node:
    place, equality = operator.start_pos, operator in ("=", "!=")
    if isinstance(value, _Star):
        if operator != ":" or function:
            raise _refuse(place, "* without quotes stands only behind a field's name and ':'")
        return Present(path)
    if function == "size":
        if not isinstance(value, float) or operator == ":":
            raise _refuse(place, "size() is compared with a number by = != < <= > >=")
        return Size(path, cast("Operator", str(operator)), value)
    folded = function == "lower"
    if folded and (operator == ":" or not isinstance(value, (str, _Wildcard))):
        raise _refuse(place, "lower() is compared with a text by = != < <= > >=")
    if isinstance(value, _Wildcard):
        if not equality:
            raise _refuse(place, r"a text with wildcards takes only = and !=; write \* for a star")
        like = Like(path, tuple(map(fold, value)) if folded else tuple(value), folded)
        return like if operator == "=" else And((Compare(path, "!=", None), Not(like)))
    if value is None and operator != "!=":
        raise _refuse(place, f"null takes only !=; what is null or missing is found by NOT {name}:*")
    if isinstance(value, bool) and not equality and operator != ":":
        raise _refuse(place, f"{str(value).lower()} takes only = and !=")
    if operator == ":":
        if isinstance(value, (Instant, Duration)):
            raise _refuse(place, "a timestamp or a duration takes = != < <= > >=")
        return Has(path, value)
    return Compare(path, cast("Operator", str(operator)), fold(cast("str", value)) if folded else value, folded)


def _of_entity(node: Node) -> Node:
    match node:
        case And(terms):
            return And(tuple(map(_of_entity, terms)))
        case Not(term):
            return Not(_of_entity(term))
        case Compare() | Like() | Has() | Present() | Size():
            return OfEntity(node)
    raise AssertionError("a comparison is made of nothing else")


def _field(field: Token | Tree[Token]) -> tuple[str, Token]:
    """The function of the left side, or an empty text, and the field's name."""
    if not _is_tree(field):
        return "", cast("Token", field)
    function, *arguments = cast("list[Token]", cast("Tree[Token]", field).children)
    if function in ("timestamp(", "duration("):
        raise _refuse(function.start_pos, f"{function}...) stands on the right of a comparison")
    if function not in ("lower(", "size("):
        raise _refuse_function(function)
    if [argument.type for argument in arguments] != ["PATH"]:
        raise _refuse(function.start_pos, f"{function}...) takes the name of one field")
    return function[:-1], arguments[0]


def _literal(literal: Token | Tree[Token]) -> _Literal:
    if _is_tree(literal):
        return _call(cast("list[Token]", cast("Tree[Token]", literal).children))
    token = cast("Token", literal)
    match token.type:
        case "STRING":
            return _text(token)
        case "NUMBER":
            number = float(token)
            if math.isinf(number):
                raise _refuse(token.start_pos, f"{token} is no IEEE double")
            return number + 0.0  # -0 is 0
        case "SECONDS":
            return Duration(_read(read_duration, token, token))
        case "TIMESTAMP":
            return Instant(_read(read_timestamp, token, token))
        case "STAR":
            return _Star()
    if token in _WORDS:
        return _WORDS[token]
    if token in _KEYWORDS or token.split(".")[0] == "data":
        what = "keyword" if token in _KEYWORDS else "field, which stands only on the left"
        raise _refuse(token.start_pos, f"{token} is a {what}: put it in quotes if it is a text")
    return str(token)


def _call(children: list[Token]) -> Value:
    function, *arguments = children
    if function in ("lower(", "size("):
        raise _refuse(function.start_pos, f"{function}...) stands on the left of a comparison")
    if function not in ("timestamp(", "duration("):
        raise _refuse_function(function)
    text = _text(arguments[0]) if [argument.type for argument in arguments] == ["STRING"] else None
    if not isinstance(text, str):
        raise _refuse(function.start_pos, f"{function}...) takes one text in quotes")
    if function == "timestamp(":
        return Instant(_read(read_timestamp, text, function))
    return Duration(_read(read_duration, text, function))


def _read(read: Callable[[str], int | None], text: str, token: Token) -> int:
    nanoseconds = read(text)
    if nanoseconds is None:
        like = "2026-01-31T12:00:00Z" if read is read_timestamp else "90s or PT1M30S"
        raise _refuse(token.start_pos, f"expected something like {like}, found {text[:40]!r}")
    return nanoseconds


def _text(token: Token) -> str | _Wildcard:
    parts = [""]
    for piece in _PIECE.findall(token[1:-1]):
        if piece == "*":
            parts.append("")
            continue
        try:
            parts[-1] = unescape(piece)
        except ValueError as error:
            raise _refuse(token.start_pos, str(error)) from None
    if len(parts) - 1 > MAX_STARS:
        raise _refuse(token.start_pos, f"more than {MAX_STARS} wildcards in a text")
    return _Wildcard(parts) if len(parts) > 1 else parts[0]


def _refuse_alone(tree: Tree[Token]) -> InvalidArgument:
    child = tree.children[0]
    token = cast("Token", cast("Tree[Token]", child).children[0] if _is_tree(child) else child)
    if token.type == "PATH" and token.startswith("data."):
        problem = f"{token} stands alone: compare it, or write {token}:* if it must be there"
    else:
        problem = f"{token} stands alone: text is looked for with search, a filter compares fields"
    return _refuse(token.start_pos, problem)


def _refuse_function(function: Token) -> InvalidArgument:
    return _refuse(
        function.start_pos, f"there is no function {function[:-1]}; there are lower, size, timestamp and duration"
    )


def _is_tree(node: object) -> bool:
    return hasattr(node, "children")


def _explain(error: UnexpectedInput, text: str) -> InvalidArgument:
    # Lark names what it expected differently for a wrong token, a wrong character and a premature end.
    allowed = getattr(error, "expected", None) or getattr(error, "allowed", None) or ()
    if "OPERATOR" in allowed:
        wanted = "one of = != < <= > >= :"
    elif "TEXT" in allowed:
        wanted = "a text (in quotes, unless it is a word), a number, true, false or null"
    elif "PATH" in allowed and "$END" not in allowed:
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
