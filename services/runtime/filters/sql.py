"""Syntax tree to a SQL condition; must agree with ``predicate`` on every value that can be stored.

Every leaf is wrapped in ``coalesce(..., false)``, so that SQL's third truth value never reaches NOT.
"""

from __future__ import annotations

import json

from services.runtime.filters.ast import And, Compare, Has, Node, Not, Or, Path, Scalar


def compile_sql(node: Node, column: str = "data") -> tuple[str, list[str]]:
    """Return a boolean SQL expression that is never NULL, and its parameters in the order of their ``%s``.

    Paths and values travel only as parameters. The database's encoding must be UTF-8. Numbers are compared as
    numeric: it never overflows and, unlike a cast to double, cannot fail on a stored 1e400. That equals the comparison
    of doubles as long as stored numbers were written with the fewest digits that give the double back.

    Args:
        node: the filter.
        column: a trusted SQL expression of type jsonb, the entity's ``data``; it is repeated in the text.
    """
    parameters: list[str] = []
    return _condition(node, column, parameters), parameters


def _condition(node: Node, column: str, parameters: list[str]) -> str:
    match node:
        case And(terms):
            return f"({' and '.join(_condition(term, column, parameters) for term in terms)})"
        case Or(terms):
            return f"({' or '.join(_condition(term, column, parameters) for term in terms)})"
        case Not(term):
            return f"(not {_condition(term, column, parameters)})"
        case Compare(path, "=", None):
            return "false"
        case Compare(path, "!=", None):
            return f"coalesce({_value(path, column, parameters)} <> 'null', false)"
        case Compare(path, "=", value):
            return f"coalesce({_value(path, column, parameters)} = {_json(value, parameters)}, false)"
        case Compare(path, "!=", value):
            present = f"nullif({_value(path, column, parameters)}, 'null')"
            return f"coalesce({present} <> {_json(value, parameters)}, false)"
        case Compare(path, order, value):
            tested, found = _value(path, column, parameters), _value(path, column, parameters)
            return _ordering(tested, found, order, value, parameters)
        case Has(path, value):
            return f"coalesce({_value(path, column, parameters)} @> {_json([value], parameters)}, false)"


def _ordering(tested: str, found: str, order: str, value: Scalar, parameters: list[str]) -> str:
    # CASE, not AND: only CASE promises that the cast is not tried on a value of another type.
    if isinstance(value, str):
        parameters.append(value)
        kind, comparison = "string", f"""({found} #>> '{{}}') collate "C" {order} %s::text"""
    else:
        parameters.append(repr(value))
        kind, comparison = "number", f"{found}::numeric {order} %s::numeric"
    return f"coalesce(case when jsonb_typeof({tested}) = '{kind}' then {comparison} end, false)"


def _value(path: Path, column: str, parameters: list[str]) -> str:
    # -> with a text key, not #>: the latter would read the key '0' as a position in an array.
    parameters.extend(path)
    return f"({column}{' -> %s::text' * len(path)})"


def _json(value: Scalar | list[Scalar], parameters: list[str]) -> str:
    parameters.append(json.dumps(value, ensure_ascii=False))
    return "%s::jsonb"
