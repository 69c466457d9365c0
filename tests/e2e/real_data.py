"""The real data set, when ``STRANDLINE_DATA`` names its folder: 135,105 entities and an ordered history."""

from __future__ import annotations

import json
import lzma
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest

UNIT_CHANGES = 500

Key: TypeAlias = tuple[str, str]
State: TypeAlias = dict[Key, dict[str, Any]]

needs_data = pytest.mark.skipif(
    "STRANDLINE_DATA" not in os.environ, reason="STRANDLINE_DATA does not name the folder with the real data"
)

STRING, NUMBER, INTEGER, BOOLEAN = ({"type": kind} for kind in ("string", "number", "integer", "boolean"))

ENTITY_TYPES: dict[str, dict[str, dict[str, str]]] = {
    "country": dict.fromkeys(("code", "name", "continent", "wikipedia_link", "keywords"), STRING),
    "region": dict.fromkeys(
        ("code", "local_code", "name", "continent", "iso_country", "wikipedia_link", "keywords"), STRING
    ),
    "airport": {
        "ident": STRING,
        "runway_count": INTEGER,
        "frequency_count": INTEGER,
        "latitude_deg": NUMBER,
        "longitude_deg": NUMBER,
    },
    "navaid": dict.fromkeys(
        (
            "filename",
            "ident",
            "name",
            "type",
            "iso_country",
            "usageType",
            "power",
            "associated_airport",
            "dme_channel",
        ),
        STRING,
    )
    | dict.fromkeys(("frequency_khz", "elevation_ft", "dme_frequency_khz", "dme_elevation_ft"), INTEGER)
    | dict.fromkeys(
        (
            "latitude_deg",
            "longitude_deg",
            "magnetic_variation_deg",
            "dme_latitude_deg",
            "dme_longitude_deg",
            "slaved_variation_deg",
        ),
        NUMBER,
    ),
    "runway": dict.fromkeys(("airport_ident", "surface", "le_ident", "he_ident"), STRING)
    | dict.fromkeys(("lighted", "closed"), BOOLEAN)
    | dict.fromkeys(
        (
            "airport_ref",
            "length_ft",
            "width_ft",
            "le_displaced_threshold_ft",
            "he_displaced_threshold_ft",
            "le_elevation_ft",
            "he_elevation_ft",
        ),
        INTEGER,
    )
    | dict.fromkeys(
        (
            "le_latitude_deg",
            "le_longitude_deg",
            "le_heading_degT",
            "he_latitude_deg",
            "he_longitude_deg",
            "he_heading_degT",
        ),
        NUMBER,
    ),
    "airport_frequency": {
        "airport_ref": INTEGER,
        "airport_ident": STRING,
        "type": STRING,
        "description": STRING,
        "frequency_mhz": NUMBER,
    },
}
INDEXES: dict[str, list[dict[str, Any]]] = {
    "country": [{"fields": ["data.code"], "unique": True}],
    "region": [{"fields": ["data.iso_country", "data.name"]}, {"fields": ["data.code"], "unique": True}],
    "airport": [{"fields": ["data.ident"], "unique": True}, {"fields": ["data.runway_count desc", "data.ident"]}],
    "navaid": [{"fields": ["data.iso_country", "data.frequency_khz desc"]}, {"fields": ["data.type", "data.name"]}],
    "runway": [{"fields": ["data.surface", "data.length_ft desc"]}, {"fields": ["data.airport_ref"]}],
    "airport_frequency": [{"fields": ["data.type", "data.frequency_mhz"]}],
}


def folder() -> Path:
    return Path(os.environ["STRANDLINE_DATA"])


def entities_file() -> Path:
    return folder() / "entities" / "ourairports-entities.jsonl.xz"


def read_entities() -> State:
    """All entities, by (type, id)."""
    with lzma.open(entities_file(), "rt", encoding="utf-8") as lines:
        return {(row["type"], row["id"]): row["data"] for row in map(json.loads, lines)}


@dataclass(frozen=True, slots=True)
class Event:
    """One change of the history; ``row`` is None for a delete."""

    operation: str
    key: Key
    row: dict[str, str] | None


def read_units() -> Iterator[list[Event]]:
    """The history as units of at most 500 changes, in order: a batch is one unit, or several when it is larger."""
    unit: list[Event] = []
    batch = 0
    with lzma.open(folder() / "history" / "ourairports-history.jsonl.xz", "rt", encoding="utf-8") as lines:
        for event in map(json.loads, lines):
            if unit and (event["b"] != batch or len(unit) == UNIT_CHANGES):
                yield unit
                unit = []
            batch = event["b"]
            unit.append(Event(event["op"], (event["type"], event["id"]), event.get("row")))
    yield unit


def replay(units: Iterator[list[Event]]) -> State:
    """The state after the last unit, in plain Python."""
    state: State = {}
    for unit in units:
        for event in unit:
            if event.row is None:
                del state[event.key]
            else:
                state[event.key] = dict(event.row)
    return state
