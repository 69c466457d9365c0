"""Invented airports, their index keys, and arrays packed for PostgreSQL's binary protocol."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import orjson
from psycopg import adapters
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

COUNTRIES = [f"{a}{b}" for a in "ABCDE" for b in "FGHI"]
KINDS = ["small", "medium", "large", "heliport"]
MAX_ELEVATION = 4_000.0
MAX_POPULATION = 1_000_000_000.0

_COMPLEMENT = bytes(255 - byte for byte in range(256))


@dataclass(frozen=True, slots=True)
class Record:
    """One entity: about 200 bytes of JSON, the same bytes in place of its serialized message, three index keys."""

    number: int
    id: str
    data: bytes
    city_key: bytes
    population_key: bytes
    place_key: bytes

    @property
    def keys(self) -> tuple[bytes, bytes, bytes]:
        return self.city_key, self.population_key, self.place_key


def records(rng: random.Random, numbers: Iterable[int]) -> Iterator[Record]:
    """Yield an entity per number, with ids like the service's default (UUIDv7: 36 characters, rising)."""
    for number in numbers:
        milliseconds = f"{1_700_000_000_000 + number:012x}"
        tail = f"{rng.getrandbits(76):019x}"
        yield _record(rng, number, f"{milliseconds[:8]}-{milliseconds[8:]}-7{tail[:3]}-{tail[3:7]}-{tail[7:]}")


def _record(rng: random.Random, number: int, id_: str) -> Record:
    city, country = f"City {rng.randrange(40_000)}", rng.choice(COUNTRIES)
    population, elevation = round(rng.random() * MAX_POPULATION), round(rng.random() * MAX_ELEVATION, 1)
    data = orjson.dumps(
        {
            "name": f"Municipal Airport {rng.getrandbits(32):08x}",
            "city": city,
            "country": country,
            "kind": rng.choice(KINDS),
            "population": population,
            "elevation": elevation,
            "latitude": round(rng.uniform(-90, 90), 5),
            "longitude": round(rng.uniform(-180, 180), 5),
            "open": rng.random() < 0.5,
        }
    )
    keys = string_key(city), descending(number_key(population)), place_key(country, elevation)
    return Record(number, id_, data, *keys)


def string_key(value: str) -> bytes:
    """Order-preserving and prefix-free: two zero bytes end the string, so a zero inside is escaped."""
    return b"\x40" + value.encode().replace(b"\x00", b"\x00\xff") + b"\x00\x00"


def number_key(value: float) -> bytes:
    """Order-preserving IEEE double: flip the sign of positives, every bit of negatives."""
    packed = struct.pack(">d", value)
    return b"\x30" + (packed.translate(_COMPLEMENT) if packed[0] & 0x80 else bytes([packed[0] | 0x80]) + packed[1:])


def place_key(country: str, elevation: float) -> bytes:
    """Key of the composite index (country, elevation)."""
    return string_key(country) + number_key(elevation)


def descending(key: bytes) -> bytes:
    """The same key in reverse order."""
    return key.translate(_COMPLEMENT)


class _Array(bytes):
    """A one-dimensional array already in PostgreSQL's binary form; subclasses name the element and array types."""

    element_oid = 0

    @classmethod
    def of(cls, items: Sequence[bytes]) -> _Array:
        # Packing by hand, because psycopg's list dumper costs more than the insert itself.
        head = struct.pack("!iiIii", 1, 0, cls.element_oid, len(items), 1)
        return cls(head + b"".join([part for item in items for part in (len(item).to_bytes(4, "big"), item)]))


class TextArray(_Array):
    element_oid = 25


class BytesArray(_Array):
    element_oid = 17


class IntArray(_Array):
    element_oid = 20


class JsonbArray(_Array):
    element_oid = 3802


def texts(values: Sequence[str]) -> _Array:
    return TextArray.of([value.encode() for value in values])


def integers(values: Sequence[int]) -> _Array:
    return IntArray.of([value.to_bytes(8, "big", signed=True) for value in values])


def blobs(values: Sequence[bytes]) -> _Array:
    return BytesArray.of(values)


def documents(values: Sequence[bytes]) -> _Array:
    """``jsonb[]`` of UTF-8 JSON texts; the leading byte is the version of jsonb's wire form."""
    return JsonbArray.of([b"\x01" + value for value in values])


class _AsIs(Dumper):
    format = Format.BINARY

    def dump(self, obj: Buffer) -> Buffer:
        return obj


for _cls, _oid in ((TextArray, 1009), (BytesArray, 1001), (IntArray, 1016), (JsonbArray, 3807)):
    adapters.register_dumper(_cls, type(f"{_cls.__name__}Dumper", (_AsIs,), {"oid": _oid}))
