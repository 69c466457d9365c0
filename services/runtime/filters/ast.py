"""The syntax tree of a filter: immutable, comparable, safe to share between threads and to cache.

A path holds the keys inside ``data``: ``data.port.`odd key``` is ``("port", "odd key")``. Numbers are always
``float``. Two trees that differ only in ``1.0`` and ``True`` compare equal, as Python says; do not key a cache by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Path: TypeAlias = tuple[str, ...]
Scalar: TypeAlias = str | float | bool | None
Operator: TypeAlias = Literal["=", "!=", "<", "<=", ">", ">="]


@dataclass(frozen=True, slots=True)
class Compare:
    """``data.path op value``: false when the field is missing or null. ``value`` is null only with ``=`` and ``!=``."""

    path: Path
    operator: Operator
    value: Scalar


@dataclass(frozen=True, slots=True)
class Has:
    """``data.path:value``: the field is an array and one of its elements equals *value*, which is never null."""

    path: Path
    value: Scalar


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


Node: TypeAlias = Compare | Has | Not | And | Or
