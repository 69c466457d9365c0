"""Pages against a full scan while others write: what stays is met exactly once, and the order is never broken.

Every list is walked page by page through two replicas in turn, while entities appear, change, go and come back. A page
token is a position in the order of the list on current data, which gives three promises whatever is written:

- an entity that does not change while the list is walked is in it exactly once, if it matches;
- no version of an entity is in it twice (an entity that moves on in the order may be met again, as it is then);
- each page goes on in the order where the one before ended.
"""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise
from typing import Any

import pytest
from strandline.entity.v1 import entity_pb2

from services.entity.index_keys import IndexField, IndexSpec, entry_keys, parse_order_by
from services.runtime.filters import compile_predicate, parse_filter
from services.stream.render import struct_to_json
from tests.integration.entity.conftest import Replica, Shore

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "country": {"type": ["string", "null"]},
        "n": {"type": ["number", "string"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}
INDEXES = [
    {"fields": ["data.n"]},
    {"fields": ["data.country", "data.n desc"]},
    {"fields": ["data.country desc", "lower(data.name)"]},
    {"fields": ["lower(data.name)"]},
    {"fields": ["data.name desc"]},
    {"fields": ["data.tags"]},
    {"fields": ["data.tags", "data.n"]},
]
STEADY, MOVING = 120, 40
Data = dict[str, Any]


def random_data(rng: random.Random) -> Data:
    """Few values, so that many entities lie at one place of every order."""
    data: Data = {"name": rng.choice(["ash", "Ash", "birch", "BIRCH", "Ärger", "ärger"])}
    if rng.random() < 0.8:
        data["country"] = rng.choice(["CH", "AT", None])
    if rng.random() < 0.9:
        data["n"] = rng.choice([-1, 0, 1, 2.5, 7, "7"])
    if rng.random() < 0.9:
        data["tags"] = rng.sample(["a", "b", "c"], rng.randrange(4))
    return data


class Weather:
    """Somebody who writes all the time, but leaves the steady entities alone."""

    def __init__(self, shore: Shore) -> None:
        self._shore = shore
        self._rng = random.Random(5)

    async def blow(self) -> None:
        """Eight writes; those that find nothing to do say so and change nothing."""
        rng = self._rng
        mutations: list[entity_pb2.Mutation] = []
        for _ in range(8):
            # Between the steady ones in the order of ids, so that a walk has something before and behind it.
            moving = f"e{rng.randrange(MOVING) * 3:03}-moving"
            data = random_data(rng)
            update = self._shore.updating(moving, data, update_mask=["*"], allow_missing=True)
            mutations.append(rng.choice([update, update, self._shore.deleting(moving), self._shore.undeleting(moving)]))
        await self._shore.batch(*mutations)


@pytest.fixture(scope="module")
async def harbour(replica: Replica) -> tuple[Shore, dict[str, entity_pb2.Entity], Weather]:
    """A namespace with entities that nobody will touch, by name; a quarter of them are deleted."""
    rng = random.Random(3)
    shore = replica.shore()
    await shore.declare(schema=SCHEMA, indexes=INDEXES)
    ids = [f"e{n:03}" for n in range(STEADY)]
    await shore.batch(*(shore.creating(entity_id, random_data(rng)) for entity_id in ids))
    await shore.batch(*(shore.deleting(entity_id) for entity_id in ids[::4]))
    steady = {shore.name(entity_id): await shore.get(entity_id) for entity_id in ids}
    assert sum(entity.HasField("delete_time") for entity in steady.values()) == STEADY // 4
    return shore, steady, Weather(shore)


LISTS = [
    ("", ""),
    ("NOT data.country = 'CH'", ""),
    ("data.country = (CH OR AT) OR data.n = 7", ""),
    ("", "data.n"),
    ("", "data.n desc"),
    ("data.n > 0", "data.n desc"),
    ("data.n >= 0 AND data.tags:*", "data.n"),
    ("", "data.country, data.n desc"),
    ("", "data.country desc, data.n"),
    ("data.country = CH", "data.n"),
    ("data.country = CH AND data.name != ash", "data.n desc"),
    ("data.country = AT", "lower(data.name)"),
    ("", "lower(data.name) desc"),
    ("lower(data.name) = 'ÄR*'", ""),
    ("lower(data.name) = birch", ""),
    ("data.name = 'a*'", "data.name desc"),
    ("", "data.name"),
    ("data.tags:a", ""),
    ("data.tags:a AND data.tags:b", "data.n"),
    ("data.tags:c AND data.n > 0", "data.n desc"),
]


@pytest.mark.parametrize("show_deleted", [False, True], ids=["live", "deleted too"])
@pytest.mark.parametrize(
    ("text", "order_by"), LISTS, ids=[f"{text or 'all'} by {order or 'place'}" for text, order in LISTS]
)
async def test_what_stays_is_met_once_in_order_whatever_is_written_meanwhile(
    harbour: tuple[Shore, dict[str, entity_pb2.Entity], Weather],
    other_replica: Replica,
    text: str,
    order_by: str,
    show_deleted: bool,
) -> None:
    shore, steady, weather = harbour
    readers = [shore, shore.through(other_replica)]
    node = parse_filter(text)
    matches = compile_predicate(node) if node is not None else lambda data: True
    before = await shore.head()
    met: list[entity_pb2.Entity] = []
    token, pages = "", 0
    while True:
        page, _ = await asyncio.gather(
            readers[pages % 2].page(
                filter=text, order_by=order_by, show_deleted=show_deleted, page_size=9, page_token=token
            ),
            weather.blow(),
        )
        met += page.entities
        token, pages = page.next_page_token, pages + 1
        if not token:
            break
    assert pages > 2, "a walk of one page shows nothing"
    assert await shore.head() > before + pages, "nothing was written meanwhile"

    versions = [(entity.name, entity.revision) for entity in met]
    assert len(versions) == len(set(versions))

    unmoved = [entity for entity in met if entity.name in steady]
    assert len({entity.name for entity in unmoved}) == len(unmoved)
    assert {entity.name: entity for entity in unmoved} == {
        name: entity
        for name, entity in steady.items()
        if matches(data_of(entity)) and (show_deleted or not entity.HasField("delete_time"))
    }

    assert all(matches(data_of(entity)) for entity in met)
    assert show_deleted or not any(entity.HasField("delete_time") for entity in met)
    places = [place(entity, parse_order_by(order_by)) for entity in met]
    assert all(left <= right for left, right in pairwise(places))
    if not order_by and not indexed(text):
        names = [entity.name for entity in met]
        assert all(left < right for left, right in pairwise(names))


def data_of(entity: entity_pb2.Entity) -> Data:
    data: Data = struct_to_json(entity.data)
    return data


def place(entity: entity_pb2.Entity, order: tuple[IndexField, ...]) -> bytes:
    """Bytes that sort as the order does; that they do is shown beside the keys of indexes."""
    (key,) = entry_keys(IndexSpec(order), data_of(entity))
    return key


def indexed(text: str) -> bool:
    """Whether the walk is that of an index, whose order is nobody's promise."""
    return bool(text) and not text.startswith("NOT") and " OR " not in text
