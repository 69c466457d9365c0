"""Files as chunks of lines: nothing lost, nothing parsed that need not be, and each line's number kept."""

from __future__ import annotations

import gzip
import io
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strandline_cli.import_files import (
    CHUNK_BYTES,
    CHUNK_LINES,
    Chunk,
    ImportFileError,
    csv_chunks,
    is_csv,
    json_line_chunks,
    unpacked,
)

SCHEMA = {"properties": {"n": {"type": "integer"}, "x": {"type": ["number", "null"]}, "on": {"type": "boolean"}}}


@given(st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=30), st.booleans())
def test_the_lines_are_those_of_the_file(lines: list[bytes], ended: bool) -> None:
    raw = b"\n".join(lines) + (b"\n" if ended and lines else b"")
    expected = raw.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert [line for chunk in json_line_chunks(io.BytesIO(raw)) for line in chunk.lines] == expected


def test_chunks_join_up_and_fit_a_request() -> None:
    lines = [b"x" * size for size in (*[10] * 2500, *[CHUNK_BYTES // 3] * 7, 5)]
    chunks = list(json_line_chunks(io.BytesIO(b"\n".join(lines))))
    assert [chunk.offset for chunk in chunks] == [0, *(chunk.end for chunk in chunks[:-1])]
    assert [line for chunk in chunks for line in chunk.lines] == lines
    assert all(len(chunk.lines) <= CHUNK_LINES for chunk in chunks)
    assert all(sum(map(len, chunk.lines)) <= CHUNK_BYTES for chunk in chunks)


def test_a_line_that_fits_no_request_becomes_a_row_that_says_so() -> None:
    (chunk,) = json_line_chunks(io.BytesIO(b"{}\n" + b"x" * (CHUNK_BYTES + 1) + b"\n{}"))
    assert json.loads(chunk.lines[1]) == {"error": "has 2,097,153 bytes, at most 2,097,152 are read"}
    assert (chunk.lines[0], chunk.lines[2]) == (b"{}", b"{}")


def test_cells_are_typed_by_the_schema_and_rows_keep_the_number_of_their_line() -> None:
    text = 'id,n,x,on,note\n1,7,2.5,yes,"two\nlines"\n2,many,,0,\n3,1\n4,-3,1e3,TRUE,007\n'
    (chunk,) = csv_chunks(io.BytesIO(text.encode()), "ship", "id", SCHEMA)
    rows = [json.loads(line) for line in chunk.lines]
    assert [row.get("data") for row in rows] == [
        {"n": 7, "x": 2.5, "on": True, "note": "two\nlines"},
        {"n": "many", "on": False},
        None,
        {"n": -3, "x": 1000.0, "on": True, "note": "007"},
    ]
    assert rows[2] == {"error": "has more or fewer cells than the header"}
    assert [row.get("id") for row in rows] == ["1", "2", None, "4"]
    # The first record ends on the third line of the file.
    assert [chunk.number(line) for line in (1, 2, 3, 4)] == [3, 4, 5, 6]


def test_a_file_without_the_column_of_ids_is_refused() -> None:
    with pytest.raises(ImportFileError, match="there is no column 'code'; there are: id, n"):
        list(csv_chunks(io.BytesIO(b"id,n\n"), "ship", "code", SCHEMA))


def test_a_chunk_is_split_where_an_import_goes_on() -> None:
    head, tail = Chunk(10, [b"a", b"b", b"c"], [11, 13, 17]).split(12)
    assert (head.offset, head.lines, head.number(12)) == (10, [b"a", b"b"], 13)
    assert (tail.offset, tail.lines, tail.number(13), tail.end) == (12, [b"c"], 17, 13)


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.xz", lzma.compress), ("a.csv.gz", gzip.compress), ("a", bytes)])
def test_packed_files_are_unpacked_by_their_name(name: str, pack: type[bytes]) -> None:
    with unpacked(Path(name), io.BytesIO(pack(b"line\n"))) as file:
        assert file.read() == b"line\n"
    assert is_csv(Path(name)) == name.startswith("a.csv")


def test_what_was_rejected_is_kept_as_data_or_as_the_text_of_its_line() -> None:
    deep = b'{"type": "ship", "id": "j", "data": ' + b'{"d": ' * 5000 + b"1" + b"}" * 5001
    lines = [
        b'{"type": "ship", "id": "j", "data": {"name": "\xc3\xa9", "n": 12345678901234567890123}}',
        b'{"type": "ship", "id": "j", "data": {"name": "\\ud800"}}',
        b'{"type": "ship", "id": "j", "data": {"n": NaN}}',
        b'{"type": "ship", "id": "j", "data": {"n": 1, "n": 2}}',
        b'{"type": "ship", "id": "j"}',
        b"no \xff json",
        deep,
        b"x" * (CHUNK_BYTES + 1),
    ]
    (chunk,) = json_line_chunks(io.BytesIO(b"\n".join(lines)))
    assert [chunk.content(line) for line in range(1, 9)] == [
        {"data": {"name": "\u00e9", "n": 12345678901234567890123}},
        *({"raw": line.decode(errors="replace")} for line in lines[1:]),
    ]


def test_a_csv_record_that_is_no_row_is_kept_as_it_is_in_the_file() -> None:
    text = 'id,n,x,on,note\n1,7,nan,yes,a\n2,7\n\n3,7,1,no,"two\nlines",more\n4,7,1,no,"a"b\n5,1,2,no,b\n'
    (chunk,) = csv_chunks(io.BytesIO(text.encode()), "ship", "id", SCHEMA)
    assert [chunk.content(line) for line in range(1, 6)] == [
        {"data": {"n": 7, "x": "nan", "on": True, "note": "a"}},
        {"raw": "2,7"},
        {"raw": '3,7,1,no,"two\nlines",more'},
        {"raw": '4,7,1,no,"a"b'},
        {"data": {"n": 1, "x": 2, "on": False, "note": "b"}},
    ]
    assert chunk.split(2)[1].content(3) == {"raw": '3,7,1,no,"two\nlines",more'}
