"""The syntax tree of a filter: immutable, comparable, safe to share between threads and to cache.

A path holds the keys inside ``data``: ``data.port.`odd key``` is ``("port", "odd key")``. Numbers are always
``float``. Two trees that differ only in ``1.0`` and ``True`` compare equal, as Python says; do not key a cache by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

Path: TypeAlias = tuple[str, ...]
Scalar: TypeAlias = str | float | bool | None
Operator: TypeAlias = Literal["=", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True)
class Instant:
    """A moment, however it is written: nanoseconds since 1970-01-01T00:00:00Z."""

    nanoseconds: int


@dataclass(frozen=True, slots=True)
class Duration:
    """A length of time in nanoseconds, however it is written."""

    nanoseconds: int


Value: TypeAlias = Scalar | Instant | Duration


@dataclass(frozen=True, slots=True)
class Compare:
    """``data.path op value``: false when the field is missing or null.

    ``value`` is null only with ``!=``. Against an ``Instant`` or a ``Duration``, text counts as what it says;
    text that says no such thing is unequal and has no order. *folded*: the field's text is compared as ``fold`` gives
    it, and ``value`` is text that is folded already.
    """

    path: Path
    operator: Operator
    value: Value
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Like:
    """``data.path = "a*b"``: text that consists of *parts* with anything between them; ``"a*"`` is ``("a", "")``.

    There are at least two parts. *folded*: as in ``Compare``, and the parts are folded already.
    """

    path: Path
    parts: tuple[str, ...]
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Has:
    """``data.path:value``: an array has an element equal to *value*, an object has that key, a scalar equals it.

    The path leads through arrays, to any of their elements. A key whose value is null is not there. *value* is never
    null.
    """

    path: Path
    value: Scalar


@dataclass(frozen=True, slots=True)
class Present:
    """``data.path:*``: there is a value other than null. The path leads through arrays, as in ``Has``."""

    path: Path


@dataclass(frozen=True, slots=True)
class Size:
    """``size(data.path) op value``: compares the number of elements of an array; false for everything else."""

    path: Path
    operator: Operator
    value: float


@dataclass(frozen=True, slots=True)
class OfEntity:
    """*term* is about the entity's own fields (``name``, ``create_time``, ...), where its path begins."""

    term: Compare | Like | Has | Present | Size


@dataclass(frozen=True, slots=True)
class Not:
    """True exactly when *term* is false; there is no third truth value."""

    term: Node


@dataclass(frozen=True, slots=True)
class And:
    """Two or more terms, all of which must hold."""

    terms: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Two or more terms, one of which must hold."""

    terms: tuple[Node, ...]


Node: TypeAlias = Compare | Like | Has | Present | Size | OfEntity | Not | And | Or


def data_paths(node: Node) -> Iterator[Path]:
    """The paths inside ``data`` that *node* names, with repetitions."""
    match node:
        case And(terms) | Or(terms):
            for term in terms:
                yield from data_paths(term)
        case Not(term):
            yield from data_paths(term)
        case Compare(path) | Like(path) | Has(path) | Present(path) | Size(path):
            yield path
        case OfEntity():
            pass
