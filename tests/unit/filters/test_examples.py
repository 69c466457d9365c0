"""Every example of the page on filters."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from services.entity.schemas import compile_schema, field_types
from services.runtime.errors import InvalidArgument
from services.runtime.filters import compile_predicate, parse_filter

PAGE = (Path(__file__).parents[3] / "docs" / "filters.md").read_text()
SCHEMA: dict[str, Any] = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0])
_CODE = re.compile(r"``(.+?)``|`(.+?)`")


def _codes(cell: str) -> list[str]:
    return [wide or plain for wide, plain in _CODE.findall(cell)]


ROWS = [
    tuple(map(_codes, line.strip("|").split(" | "))) for line in PAGE.splitlines() if re.match(r"\| `.* \| `\{", line)
]
EXAMPLES = [
    (filter, json.loads(document), found)
    for (filter,), matching, others in ROWS
    for documents, found in ((matching, True), (others, False))
    for document in documents
]


def test_the_page_has_its_examples() -> None:
    assert len(ROWS) == 36
    assert all(matching and others for _, matching, others in ROWS)


@pytest.mark.parametrize(("text", "document", "found"), EXAMPLES)
def test_an_example_of_the_page_holds(text: str, document: dict[str, Any], found: bool) -> None:
    node = parse_filter(text, field_types(SCHEMA))
    assert node is not None
    assert compile_predicate(node)(document) is found


@pytest.mark.parametrize("document", [document for _, document, _ in EXAMPLES])
def test_an_example_of_the_page_can_be_stored(document: dict[str, Any]) -> None:
    assert compile_schema(SCHEMA).is_valid(document)


@pytest.mark.parametrize(
    "text", ["Victor", "data.depth = deep", "data.at > tomorrow", "lower(data.tags) = a", "data.x = now()"]
)
def test_what_the_page_rules_out_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_filter(text, field_types(SCHEMA))
