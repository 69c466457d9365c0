"""What the filter language accepts, how it groups, and that it never fails in any other way than it says."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.errors import InvalidArgument
from services.runtime.filters import parse_filter
from services.runtime.filters.ast import And, Compare, Has, Node, Not, Or, Scalar
from services.runtime.filters.paths import parse_path, render_path
from tests.unit.filters.strategies import plain_filters, strings

WORDS = ["data.a", "data.`", "AND", "OR", "NOT", "!=", "1e9", "true", "null", "\ud800"]
FRAGMENTS = [*WORDS, *"`'\"\\*()-=<:5 .\0é"]
TYPES = {
    ("country",): frozenset({"string", "null"}),
    ("population",): frozenset({"integer"}),
    ("active",): frozenset({"boolean"}),
    ("tags",): frozenset({"array"}),
    ("tags", "[]"): frozenset({"string"}),
}
A, B, C = (Compare((name,), "=", 1.0) for name in "abc")


@pytest.mark.parametrize("text", ["", "  ", "\n\t"])
def test_an_empty_filter_is_no_filter(text: str) -> None:
    assert parse_filter(text) is None


def test_or_binds_tighter_than_and() -> None:
    assert parse_filter("data.a=1 AND data.b=1 OR data.c=1") == And((A, Or((B, C))))
    assert parse_filter("data.a=1 OR data.b=1 AND data.c=1") == And((Or((A, B)), C))


def test_terms_side_by_side_are_an_and() -> None:
    assert parse_filter("data.a=1 data.b=1") == And((A, B))
    assert parse_filter("data.a=1 data.b=1 OR data.c=1") == And((A, Or((B, C))))


def test_parentheses_group() -> None:
    assert parse_filter("(data.a=1 AND data.b=1) OR data.c=1") == Or((And((A, B)), C))


@pytest.mark.parametrize("negation", ["NOT data.a=1", "-data.a=1", "NOT (data.a=1)", "-(data.a = 1)"])
def test_not_and_minus_negate(negation: str) -> None:
    assert parse_filter(negation) == Not(A)


def test_a_minus_after_a_number_negates_the_next_term() -> None:
    assert parse_filter("data.a = 1 -data.b = 1") == And((A, Not(B)))


@pytest.mark.parametrize("operator", ["=", "!=", "<", "<=", ">", ">="])
def test_every_comparison_is_read(operator: str) -> None:
    assert parse_filter(f"data.a {operator} -2.5e1") == Compare(("a",), operator, -25.0)  # type: ignore[arg-type]  # a str


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("'NO'", "NO"),
        ('"NO"', "NO"),
        ("''", ""),
        (r"'it\'s'", "it's"),
        (r'"\"\\\/\b\f\n\r\t"', '"\\/\b\f\n\r\t'),
        (r"'\u00e9\ud83d\ude00'", "é😀"),
        (r"'4\*'", "4*"),
        (r"'\u002a'", "*"),
        ("5", 5.0),
        ("5.0", 5.0),
        ("-0", 0.0),
        ("1e-400", 0.0),
        ("true", True),
        ("false", False),
        ("null", None),
    ],
)
def test_a_literal_is_read(text: str, value: Scalar) -> None:
    node = parse_filter(f"data.a = {text}")
    assert isinstance(node, Compare)
    assert (type(node.value), node.value) == (type(value), value)
    assert str(node.value) != "-0.0"


@given(strings)
def test_json_writes_a_string_that_the_filter_reads(text: str) -> None:
    literal = json.dumps(text).replace("*", r"\*")
    assert parse_filter(f"data.a = {literal}") == Compare(("a",), "=", text)


def test_an_array_is_asked_with_a_colon() -> None:
    assert parse_filter("data.tags:'x'") == Has(("tags",), "x")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("data.country", ("country",)),
        ("data.a.b", ("a", "b")),
        ("data.`odd key`.x", ("odd key", "x")),
        (r"data.`a\`b\\c`", ("a`b\\c",)),
        ("data.``", ("",)),
        ("data.`a.b`", ("a.b",)),
        ("data.AND", ("AND",)),
        ("data.true", ("true",)),
    ],
)
def test_a_field_is_a_path_inside_data(text: str, path: tuple[str, ...]) -> None:
    assert parse_filter(f"{text} = 1") == Compare(path, "=", 1.0)


@given(st.lists(strings, min_size=1, max_size=3).map(tuple))
def test_a_path_reads_back_as_it_was_written(path: tuple[str, ...]) -> None:
    assert parse_path(render_path(path), field="filter") == path
    assert parse_filter(f"{render_path(path)} = 1") == Compare(path, "=", 1.0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("country = 'NO'", "unknown field country"),
        ("id = 'x'", "unknown field id"),
        ("data = 1", "unknown field data"),
        ("data.a", "expected one of = != < <= > >= :, found the end (character 7)"),
        ("data.a =", "found the end (character 9)"),
        ("data.a = 1 AND", "expected a comparison"),
        ("data.a = NO", "expected a quoted string, a number, true, false or null, found 'NO' (character 10)"),
        ("data.a = data.b", "expected a quoted string"),
        ("data.a = 'x", "(character 10)"),
        ("data.a == 1", "(character 9)"),
        ("data.a = 1)", "expected the end, found ')' (character 11)"),
        ("(data.a = 1", "found the end (character 12)"),
        ("data..a = 1", "(character 5)"),
        ("data.odd-key = 1", "(character 9)"),
        ("NOT NOT data.a = 1", "(character"),
        ("data.a = 1e400", "1e400 is no IEEE double (character 10)"),
        ("data.a = 'x*'", r"write \* for a star (character 10)"),
        (r"data.a = '\x'", r"unknown escape \x (character 10)"),
        (r"data.a = '\ud800'", "lone surrogate (character 10)"),
        ("data.a = '\ud800'", "lone surrogate (character 11)"),
        (r"data.a = '\u0000'", "U+0000, which no stored text holds (character 10)"),
        (r"data.`\u0000` = 1", "U+0000"),
        ("data.a < true", "data.a: true takes only = and != (character 8)"),
        ("data.a >= null", "null takes only = and !="),
        ("data.a:null", "null takes only = and !="),
    ],
)
def test_a_wrong_filter_is_refused_with_what_and_where(text: str, problem: str) -> None:
    refused = refusal(text)
    assert problem in refused.message
    assert [violation.field for violation in refused.violations] == ["filter"]


def test_length_depth_and_terms_are_bounded() -> None:
    assert parse_filter("data.a = 1".ljust(4096)) == A
    assert "4096" in refusal("data.a = 1".ljust(4097)).message
    assert parse_filter("(" * 32 + "data.a=1" + ")" * 32) == A
    assert "(character 33)" in refusal("(" * 33 + "data.a=1" + ")" * 33).message
    assert "32" in refusal("(" * 2000 + "data.a=1" + ")" * 2000).message
    assert parse_filter(" ".join(["data.a=1"] * 100)) == And((A,) * 100)
    assert "100 comparisons (character 901)" in refusal(" ".join(["data.a=1"] * 101)).message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("data.country = 5", "data.country is null or string, the value is number"),
        ("data.population < 'x'", "data.population is integer, the value is string"),
        ("data.active = 1", "data.active is boolean"),
        ("NOT (data.a = 1 OR data.population = true)", "the value is boolean"),
        ("data.country:5", "data.country is null or string, the value is number"),
        ("data.tags:5", "data.tags is string"),
        ("data.tags = 'x'", "data.tags is array"),
    ],
)
def test_a_literal_of_a_type_that_the_schema_rules_out_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_filter(text, TYPES)
    assert problem in raised.value.message


@pytest.mark.parametrize(
    "text",
    [
        "data.country = 'NO'",
        "data.country != null",
        "data.population > 2.5",
        "data.active = true",
        "data.tags:'x'",
        "data.undeclared = 1",
    ],
)
def test_a_literal_of_a_declared_type_or_an_undeclared_field_passes(text: str) -> None:
    assert parse_filter(text, TYPES) == parse_filter(text)


@given(plain_filters)
def test_a_filter_reads_back_as_it_was_written(node: Node) -> None:
    assert written(parse_filter(written(node))) == written(node)


@given(
    st.text(max_size=40) | st.text(string.printable, max_size=40) | st.lists(st.sampled_from(FRAGMENTS)).map("".join)
)
def test_any_text_is_parsed_or_refused_as_an_invalid_field(text: str) -> None:
    refused = [error for error in [problem_with(text)] if error is not None]
    assert [error.reason for error in refused] in ([], ["INVALID_FIELD"])
    assert all(error.message.encode() for error in refused)


def refusal(text: str) -> InvalidArgument:
    refused = problem_with(text)
    assert refused is not None
    assert refused.reason == "INVALID_FIELD"
    return refused


def problem_with(text: str) -> InvalidArgument | None:
    try:
        parse_filter(text)
    except InvalidArgument as refused:
        return refused
    return None


def written(node: Node | None) -> str:
    """Write a filter with every parenthesis, as a user could."""
    match node:
        case Compare(path, operator, value):
            return f"{render_path(path)} {operator} {json.dumps(value).replace('*', chr(92) + '*')}"
        case Has(path, value):
            return f"{render_path(path)}:{json.dumps(value).replace('*', chr(92) + '*')}"
        case Not(term):
            return f"NOT ({written(term)})"
        case And(terms):
            return " AND ".join(f"({written(term)})" for term in terms)
        case Or(terms):
            return " OR ".join(f"({written(term)})" for term in terms)
        case _:
            return ""
