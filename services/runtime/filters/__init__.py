"""The filter language: one parser, one syntax tree, a Python and a SQL back end that are tested against each other.

What a comparison means, in both: a missing or null field makes it false, ``!=`` too, and NOT negates that. Values of
different JSON types are unequal and have no order, so ``!=`` between them is true. Numbers are IEEE doubles, strings
are ordered by their UTF-8 bytes, booleans have no order. ``!= null`` asks for any value.
"""

from services.runtime.filters.parser import parse_filter
from services.runtime.filters.predicate import compile_predicate
from services.runtime.filters.sql import compile_sql

__all__ = ["compile_predicate", "compile_sql", "parse_filter"]
