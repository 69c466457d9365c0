"""What follows from the removal of entities, as a plain function of who refers to whom."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from services.entity.cascades import MAX_COUNTED, MAX_TOUCHED, Hold, cleared, follow
from services.entity.content import CompiledType
from services.entity.index_keys import encode, id_in, reference_keys
from services.entity.model import EntityKey, EntityType, IndexState, OnDelete, Reference
from services.runtime.errors import FailedPrecondition, InvalidArgument

NOW = datetime(2026, 3, 1, tzinfo=UTC)
PORT, SHIP = EntityKey("port", "p"), EntityKey("ship", "s")
ANY = {"type": "object"}


def types(on_delete: OnDelete, state: IndexState = IndexState.READY) -> dict[str, CompiledType]:
    """Ships that refer to ports."""
    reference = Reference(7, "data.port", ("port",), "port", on_delete, state)
    port = EntityType("port", 1, 1, 2, ANY, (), 1, NOW, NOW, referrers=("ship",))
    ship = EntityType("ship", 2, 1, 2, ANY, (), 1, NOW, NOW, references=(reference,))
    return {"port": CompiledType(port), "ship": CompiledType(ship)}


def refusal(on_delete: OnDelete, referrers: int) -> dict[str, str]:
    holders = {(7, encode("p")): [f"s{n}" for n in range(referrers)]}
    with pytest.raises(FailedPrecondition) as refused:
        follow([PORT], [], types(on_delete), holders).check()
    return {"reason": refused.value.reason, **refused.value.metadata}


def test_what_is_not_known_is_asked_for() -> None:
    known = types(OnDelete.CASCADE)
    found = follow([PORT], [], {"port": known["port"]}, {})
    assert (found.unknown_types, found.complete) == ({"ship"}, False)
    found = follow([PORT], [], known, {})
    assert (found.unknown, found.complete) == ([(7, encode("p"))], False)
    found = follow([PORT], [], known, {(7, encode("p")): ["s"]})
    assert (found.touched, found.looked_up, found.complete) == (frozenset({SHIP}), [(7, encode("p"))], True)
    found.check()


def test_counting_says_when_it_ended_early() -> None:
    assert refusal(OnDelete.CASCADE, MAX_TOUCHED + 1) == {"reason": "CASCADE_TOO_LARGE", "count": "501"}
    assert refusal(OnDelete.SET_NULL, MAX_COUNTED) == {"reason": "CASCADE_TOO_LARGE", "count": "10000"}
    more = refusal(OnDelete.CASCADE, MAX_COUNTED + 1)
    assert more == {"reason": "CASCADE_TOO_LARGE", "count": "10000", "at_least": "true"}
    restricted = {"reason": "REFERENCED", "type": "ship", "field": "data.port"}
    assert refusal(OnDelete.RESTRICT, 3) == {**restricted, "count": "3"}
    assert refusal(OnDelete.RESTRICT, MAX_COUNTED + 1) == {**restricted, "count": "10000", "at_least": "true"}


def test_a_reference_that_is_building_allows_nothing_and_one_that_failed_everything() -> None:
    holders = {(7, encode("p")): ["s"]}
    with pytest.raises(FailedPrecondition) as refused:
        follow([PORT], [], types(OnDelete.CASCADE, IndexState.BUILDING), holders).check()
    assert refused.value.reason == "REFERENCE_BUILDING"
    failed = follow([PORT], [], types(OnDelete.RESTRICT, IndexState.FAILED), holders)
    failed.check()
    assert not failed.touched


def test_what_the_unit_writes_or_removes_itself_is_left_to_it() -> None:
    holders = {(7, encode("p")): ["s"]}
    found = follow([PORT], [PORT, SHIP], types(OnDelete.RESTRICT), holders)
    found.check()
    assert [hold.referrer for hold in found.written] == [SHIP]
    assert not follow([PORT, SHIP], [PORT, SHIP], types(OnDelete.RESTRICT), holders).written


@pytest.mark.parametrize(
    ("path", "nullable", "before", "after"),
    [
        (("r",), False, {"r": "p", "n": 1}, {"n": 1}),
        (("r",), True, {"r": "p", "n": 1}, {"r": None, "n": 1}),
        (("r",), False, {"r": ["a", "p", "b", "p"]}, {"r": ["a", "b"]}),
        (("o", "r"), False, {"o": {"r": "p", "n": 1}}, {"o": {"n": 1}}),
        (("o", "r"), True, {"o": {"r": "p", "n": 1}}, {"o": {"r": None, "n": 1}}),
        (("o", "r"), False, {"o": {"r": ["p"]}, "n": 1}, {"o": {"r": []}, "n": 1}),
    ],
)
def test_a_reference_is_taken_out_of_content(path: Any, nullable: bool, before: Any, after: Any) -> None:
    reference = Reference(7, "data.r", path, "port", OnDelete.SET_NULL, IndexState.READY)
    kinds = {path: frozenset({"string", "null"} if nullable else {"string"})}
    assert cleared(before, [Hold(SHIP, reference, PORT)], kinds) == after


def test_the_keys_of_references_are_the_distinct_strings() -> None:
    assert [id_in(key) for key in reference_keys(("r",), {"r": ["b", "a", "b", 1, None]})] == ["b", "a"]
    assert [id_in(key) for key in reference_keys(("r",), {"r": "\1\2~"})] == ["\1\2~"]
    assert reference_keys(("r",), {"r": None}) == []
    with pytest.raises(InvalidArgument):
        reference_keys(("r",), {"r": "x" * 129})
