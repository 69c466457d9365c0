"""A page token works in the list that gave it, and nowhere else."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.errors import InvalidArgument
from services.runtime.page_tokens import list_binding, open_token, seal

KEY = bytes(32)
LIST: dict[str, Any] = {
    "namespace": "demo",
    "type_id": "airport",
    "filter": "data.country = 'NO'",
    "order_by": "data.name",
    "show_deleted": False,
}
BINDING = list_binding(**LIST)
URL_SAFE = set(string.ascii_letters + string.digits + "-_")


@given(st.binary(max_size=2200))
def test_a_token_gives_its_position_back_and_is_safe_in_a_url(position: bytes) -> None:
    token = seal(KEY, BINDING, position)
    assert open_token(KEY, BINDING, token) == position
    assert set(token) <= URL_SAFE


@given(st.binary(max_size=40), st.data())
def test_a_changed_or_cut_token_is_refused(position: bytes, data: st.DataObject) -> None:
    token = seal(KEY, BINDING, position)
    place = data.draw(st.integers(0, len(token) - 1))
    other = data.draw(st.sampled_from(sorted(URL_SAFE - {token[place]})))
    assert_refused(token[:place] + other + token[place + 1 :])
    assert_refused(token[:place])
    assert_refused(token + other)


@given(st.text())
def test_any_other_text_is_refused(text: str) -> None:
    assert_refused(text)


@pytest.mark.parametrize("text", ["", "=", "A", "AAAA====", "é", "A" * 100_000, "AAAA\n"])
def test_what_no_seal_could_give_is_refused(text: str) -> None:
    assert_refused(text)
    assert_refused(seal(KEY, BINDING, b"x") + text + "=")


@pytest.mark.parametrize(
    "change",
    [
        {"namespace": "other"},
        {"type_id": "runway"},
        {"filter": "data.country = 'SE'"},
        {"order_by": ""},
        {"show_deleted": True},
        {"namespace": "demoair", "type_id": "port"},
    ],
)
def test_a_token_of_another_list_is_refused(change: dict[str, Any]) -> None:
    assert_refused(seal(KEY, list_binding(**LIST | change), b"position"))


def test_a_token_sealed_with_another_key_is_refused() -> None:
    assert_refused(seal(b"\1" * 32, BINDING, b"position"))


def assert_refused(token: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        open_token(KEY, BINDING, token)
    assert raised.value.reason == "PAGE_TOKEN_INVALID"
