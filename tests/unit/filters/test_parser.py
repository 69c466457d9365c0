"""What the filter language accepts, how it groups, and that it never fails in any other way than it says."""

from __future__ import annotations

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.errors import InvalidArgument
from services.runtime.filters import parse_filter
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
    Or,
    Path,
    Present,
    Scalar,
    Size,
    Value,
)
from services.runtime.filters.moments import read_duration, read_timestamp
from services.runtime.filters.paths import parse_path, render_path
from tests.unit.filters.strategies import DURATIONS, TIMESTAMPS, filters, strings

WORDS = ["data.a", "data.`", "AND", "OR", "NOT", "!=", "1e9", "true", "null", "\ud800", "lower(", "size(", "timestamp("]
MOMENTS: dict[Value, str] = {Instant(read_timestamp(text) or 0): f'timestamp("{text}")' for text in TIMESTAMPS}
MOMENTS |= {Duration(read_duration(text) or 0): f'duration("{text}")' for text in DURATIONS}
FRAGMENTS = [*WORDS, *"`'\"\\*()-=<:5 .\0é"]
TYPES = {
    ("country",): frozenset({"string", "null"}),
    ("population",): frozenset({"integer"}),
    ("active",): frozenset({"boolean"}),
    ("tags",): frozenset({"array"}),
    ("tags", "[]"): frozenset({"string"}),
    ("at",): frozenset({"string"}),
    ("at", "[format]"): frozenset({"date-time"}),
    ("within",): frozenset({"string"}),
    ("within", "[format]"): frozenset({"duration"}),
    ("port",): frozenset({"object"}),
    ("port", "depth"): frozenset({"number"}),
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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("CH", "CH"),
        ("com.google", "com.google"),
        ("north-sea", "north-sea"),
        ("Zürich", "Zürich"),
        ("trueish", "trueish"),
        ("20s", Duration(20 * 10**9)),
        ("-1.5s", Duration(-15 * 10**8)),
        ("duration('PT1M')", Duration(60 * 10**9)),
        ("1970-01-01T00:00:01Z", Instant(10**9)),
        ("timestamp('1970-01-01T01:00:00.5+01:00')", Instant(5 * 10**8)),
    ],
)
def test_a_literal_without_quotes_is_a_word_a_moment_or_a_duration(text: str, value: Value) -> None:
    assert parse_filter(f"data.a = {text}") == Compare(("a",), "=", value)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("'a*'", ("a", "")),
        ("'*a'", ("", "a")),
        ("'a*b*c'", ("a", "b", "c")),
        ("'*'", ("", "")),
        (r"'\**\\*'", ("*", "\\", "")),
        (r"'\u002a*'", ("*", "")),
    ],
)
def test_a_star_in_a_text_stands_for_anything(text: str, parts: tuple[str, ...]) -> None:
    like = Like(("a",), parts)
    assert parse_filter(f"data.a = {text}") == like
    assert parse_filter(f"data.a != {text}") == And((Compare(("a",), "!=", None), Not(like)))


def test_lower_folds_both_sides() -> None:
    assert parse_filter("lower(data.a) = 'ZÜRICH'") == Compare(("a",), "=", "zürich", folded=True)
    assert parse_filter("lower( data.a ) != 'A*'") == And(
        (Compare(("a",), "!=", None), Not(Like(("a",), ("a", ""), folded=True)))
    )


def test_a_size_is_compared_and_a_presence_asked() -> None:
    assert parse_filter("size(data.a) > 2") == Size(("a",), ">", 2.0)
    assert parse_filter("data.a.b:*") == Present(("a", "b"))


def test_literals_in_parentheses_share_the_field_and_the_operator() -> None:
    x, y, z = (Compare(("a",), "=", text) for text in "xyz")
    assert parse_filter("data.a = (x OR 'y')") == Or((x, y))
    assert parse_filter("data.a = (x y OR z)") == And((x, Or((y, z))))
    assert parse_filter("data.a:(x AND NOT (y OR -z))") == And(
        (Has(("a",), "x"), Not(Or((Has(("a",), "y"), Not(Has(("a",), "z"))))))
    )


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
        ("data.odd-key.1", ("odd-key", "1")),
        ("data.straße", ("straße",)),
        ("data.\"odd key\".'x'", ("odd key", "x")),
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
        ("data.a", "data.a stands alone: compare it, or write data.a:* if it must be there (character 1)"),
        ("Victor Hugo", "Victor stands alone: text is looked for with search"),
        ("'Victor'", "'Victor' stands alone"),
        ("-30", "stands alone"),
        ("lower(data.a)", "stands alone"),
        ("data.a 'x'", "data.a stands alone"),
        ("'x' = data.a", "(character 5)"),
        ("data.a =", "found the end (character 9)"),
        ("data.a = 1 AND", "expected a comparison"),
        ("data.a = @", "expected a text (in quotes, unless it is a word), a number, true, false or null, found '@'"),
        ("data.a = 2026-01-31", "found '2026-01-31' (character 10)"),
        ("data.a = data.b", "data.b is a field, which stands only on the left: put it in quotes if it is a text"),
        ("data.a = (AND)", "(character 11)"),
        ("data.a = AND", "AND is a keyword: put it in quotes if it is a text"),
        ("data.a = 'x", "(character 10)"),
        ("data.a == 1", "(character 9)"),
        ("data.a = 1)", "expected the end, found ')' (character 11)"),
        ("(data.a = 1", "found the end (character 12)"),
        ("data..a = 1", "(character 5)"),
        ("NOT NOT data.a = 1", "(character"),
        ("data.a = 1e400", "1e400 is no IEEE double (character 10)"),
        ("data.a < 'x*'", r"a text with wildcards takes only = and !=; write \* for a star (character 8)"),
        ("data.a:'x*'", "a text with wildcards takes only = and !="),
        ("data.a = '" + "*" * 17 + "'", "more than 16 wildcards in a text (character 10)"),
        ("data.a = *", "* without quotes stands only behind a field's name and ':'"),
        ("lower(data.a):*", "* without quotes stands only"),
        ("lower(data.a):'x'", "lower() is compared with a text by = != < <= > >="),
        ("lower(data.a) = 5", "lower() is compared with a text"),
        ("size(data.a) = 'x'", "size() is compared with a number"),
        ("size(data.a):5", "size() is compared with a number"),
        ("size('x') = 5", "size(...) takes the name of one field (character 1)"),
        ("lower(data.a, data.b) = 'x'", "lower(...) takes the name of one field"),
        ("regex(data.a, 'x') = true", "there is no function regex; there are lower, size, timestamp and duration"),
        ("data.a = lower('x')", "lower(...) stands on the left of a comparison (character 10)"),
        ("timestamp(data.a) > 'x'", "timestamp(...) stands on the right of a comparison (character 1)"),
        ("data.a = now()", "there is no function now"),
        ("data.a > timestamp('soon')", "expected something like 2026-01-31T12:00:00Z, found 'soon' (character 10)"),
        ("data.a > timestamp('2026*')", "timestamp(...) takes one text in quotes"),
        ("data.a > 2026-02-31T00:00:00Z", "expected something like 2026-01-31T12:00:00Z"),
        ("data.a > duration('1h')", "expected something like 90s or PT1M30S"),
        ("data.a:20s", "a timestamp or a duration takes = != < <= > >="),
        (r"data.a = '\x'", r"unknown escape \x (character 10)"),
        (r"data.a = '\ud800'", "lone surrogate (character 10)"),
        ("data.a = '\ud800'", "lone surrogate (character 11)"),
        (r"data.a = '\u0000'", "U+0000, which no stored text holds (character 10)"),
        (r"data.`\u0000` = 1", "U+0000"),
        ("data.a < true", "true takes only = and != (character 8)"),
        ("data.a >= null", "null takes only !="),
        ("data.a:null", "null takes only !="),
        ("data.a = null", "what is null or missing is found by NOT data.a:* (character 8)"),
        ("data.a.'odd key' = (x OR null)", "found by NOT data.a.'odd key':*"),
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
        ("data.tags = 'x*'", "data.tags is array, the value is string"),
        ("lower(data.population) = 'x'", "data.population is integer, the value is string"),
        ("size(data.country) > 1", "size() is for arrays, data.country is null or string"),
        ("data.at > 'yesterday'", "data.at is a date-time, write it like 2026-01-31T12:00:00Z"),
        ("data.within > 'soon'", "data.within is a duration, write it like 90s or PT1M30S"),
        ("data.population > 2026-01-01T00:00:00Z", "data.population is integer, the value is string"),
    ],
)
def test_a_literal_of_a_type_that_the_schema_rules_out_is_refused(text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_filter(text, TYPES)
    assert problem in raised.value.message


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("data.at > '1970-01-01T00:00:01Z'", Compare(("at",), ">", Instant(10**9))),
        ("data.at = '1970*'", Like(("at",), ("1970", ""))),
        ("data.within <= PT1M", Compare(("within",), "<=", Duration(60 * 10**9))),
        ("data.country:NO", Compare(("country",), "=", "NO")),
        ("data.port:pier", Present(("port", "pier"))),
        ("data.port.depth:5", Compare(("port", "depth"), "=", 5.0)),
        ("data.tags:x", Has(("tags",), "x")),
        ("data.tags.x:y", Has(("tags", "x"), "y")),
    ],
)
def test_a_schema_says_how_a_literal_is_meant(text: str, node: Node) -> None:
    assert parse_filter(text, TYPES) == node


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


def test_the_own_fields_of_an_entity_are_named_where_they_are_served() -> None:
    text = "revision > 5 create_time <= 1970-01-01T00:00:01Z name = 'n*' delete_time:*"
    assert parse_filter(text, of_entity=True) == And(
        (
            OfEntity(Compare(("revision",), ">", 5.0)),
            OfEntity(Compare(("create_time",), "<=", Instant(10**9))),
            OfEntity(Like(("name",), ("n", ""))),
            OfEntity(Present(("delete_time",))),
        )
    )
    assert parse_filter("create_time > '1970-01-01T00:00:01Z'", of_entity=True) == OfEntity(
        Compare(("create_time",), ">", Instant(10**9))
    )
    assert parse_filter("data.name = n", of_entity=True) == Compare(("name",), "=", "n")
    assert "unknown field revision" in refusal("revision > 5").message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name > 5", "name is string, the value is number"),
        ("revision > 'x'", "revision is integer, the value is string"),
        ("etag = 3", "etag is string, the value is number"),
        ("size(uid) > 3", "size() is for arrays, uid is string"),
        ("create_time > 'soon'", "create_time is a date-time, write it like"),
        ("delete_time = null", "found by NOT delete_time:*"),
        ("foo = 1", "unknown field foo: fields are data.<name>, name, uid, etag, created_by, revision, create_time, "),
    ],
)
def test_the_own_fields_of_an_entity_are_named_as_they_are_written(text: str, problem: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        parse_filter(text, of_entity=True)
    assert raised.value.message.startswith(problem) or problem in raised.value.message
    assert "data.etag" not in raised.value.message


@given(filters)
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
        case Compare(path, operator, value, folded):
            return f"{name_of(path, folded=folded)} {operator} {literal(value)}"
        case Like(path, parts, folded):
            return f'{name_of(path, folded=folded)} = "{"*".join(literal(part)[1:-1] for part in parts)}"'
        case Has(path, value):
            return f"{render_path(path)}:{literal(value)}"
        case Present(path):
            return f"{render_path(path)}:*"
        case Size(path, operator, value):
            return f"size({render_path(path)}) {operator} {literal(value)}"
        case Not(term):
            return f"NOT ({written(term)})"
        case And(terms):
            return " AND ".join(f"({written(term)})" for term in terms)
        case Or(terms):
            return " OR ".join(f"({written(term)})" for term in terms)
        case _:
            return ""


def name_of(path: Path, *, folded: bool) -> str:
    return f"lower({render_path(path)})" if folded else render_path(path)


def literal(value: Value) -> str:
    if isinstance(value, (Instant, Duration)):
        return MOMENTS[value]
    return json.dumps(value).replace("*", r"\*")
