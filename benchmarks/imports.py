"""Entities per second of ``strandline import``, end to end, as a user runs it: from the file to the last answer.

In the path: the command itself (start, unpacking, parsing, a Python client), the edge, the entity service's sidecar,
the service, PostgreSQL with fsync on. Nothing is pinned: on two cores all of them share. The input is the real data
set when ``STRANDLINE_DATA`` names its folder (135,105 entities of six types, one or two indexes each), else generated
airports. Every round imports into a new namespace, and every row must have arrived.

Where the time goes, in us of CPU per row of the real data. The entity process is the bottleneck; of what it takes, its
stages alone are 66 (best of 10 rounds, beside others on the same cores): read the line 6.6, validate, encode and make
index keys 11.5, make the unit 7.5, take the batch 1.4, put its reads together and read them 2.9, decide and encode
entity and unit 24, pack arrays for the log 4.5, for entities and index entries 5, answer and account 2. The rest are
its event loop, gRPC and libpq. PostgreSQL takes about 0.4 of what the entity process takes, the command 0.1 and a
second for its start, all proxies together 0.05. While PostgreSQL writes a chunk, the next ones are read, validated and
encoded: the loop of the entity service is seldom idle, so a faster import means less Python per row.

The ceiling is COPY of the very rows that the round made (see ``copying``). Wrong to conclude: what the service can
take; ``batch_writes`` says that.
"""

from __future__ import annotations

import itertools
import json
import lzma
import os
import random
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg
from strandline_cli.api import Api
from strandline_cli.tokens import administrator_token

from benchmarks import figures, tenant
from benchmarks.copying import CopyCeiling
from benchmarks.machine import Meter
from benchmarks.records import records
from benchmarks.whole_platform import Platform, platform

GENERATED_ROWS = 50_000
SHORT_SECONDS = 20.0
REAL_INDEXES = {
    "country": ["data.code"],
    "region": ["data.iso_country"],
    "airport": ["data.ident"],
    "navaid": ["data.ident", "data.iso_country"],
    "runway": ["data.airport_ref"],
    "airport_frequency": ["data.airport_ref"],
}
_JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number"}


async def run(*, quick: bool) -> None:
    """Print ``imports``."""
    async with platform() as running:
        code, said = await running.command("import", "--help")
        if code != 0:
            figures.skip("imports", f"there is no import command: {said.splitlines()[-1]}")
            return
        file, types, rows = _input(running.home.root, quick)
        meter = Meter(running.pids)
        copy = CopyCeiling(running.database("entity"))
        await copy.create()
        rates: list[float] = []
        ceilings: list[float] = []
        seconds = 0.0
        # One round of the real data takes long enough to be steady; a second one when there is time for it.
        while not rates or (not quick and len(rates) < 2 and seconds < SHORT_SECONDS):
            namespace = f"bench-{secrets.token_hex(4)}"
            _declare(running, namespace, types)
            before, _ = await _content(running, namespace)
            with meter.running():
                began = time.perf_counter()
                code, said = await running.command("import", namespace, str(file))
                seconds = time.perf_counter() - began
            after, stored = await _content(running, namespace)
            if code != 0 or stored != rows or after - before != rows:
                raise RuntimeError(f"of {rows} rows {stored} were stored in {after - before} revisions: {said[-500:]}")
            rates.append(rows / seconds)
            ceilings.append(rows / await copy.seconds(namespace, before, after))
    context = {"rows": rows, "data": "real" if "STRANDLINE_DATA" in os.environ else "generated", "sidecars": True}
    figures.emit("imports", "entities/s", rates, ceilings, meter.cores(), {**context, "cores": "shared"})


def _declare(running: Platform, namespace: str, types: Mapping[str, dict[str, Any]]) -> None:
    api = Api(running.rest, administrator_token(running.home, running.rest))
    api.call("POST", f"/v1/namespaces?namespaceId={namespace}", {})
    for name, declared in types.items():
        api.call("POST", f"/v1/namespaces/{namespace}/types?typeId={name}", declared)


async def _content(running: Platform, namespace: str) -> tuple[int, int]:
    """The newest revision, and the number of entities."""
    async with await psycopg.AsyncConnection.connect(running.database("entity")) as connection:
        cursor = await connection.execute(
            """SELECT (SELECT revision FROM heads WHERE namespace = %(namespace)s),
            (SELECT count(*) FROM entities WHERE namespace = %(namespace)s)""",
            {"namespace": namespace},
        )
        row = await cursor.fetchone()
    assert row is not None
    return row[0], row[1]


def _input(folder: Path, quick: bool) -> tuple[Path, dict[str, dict[str, Any]], int]:
    """The file, the types that it needs, and its number of rows."""
    if data := os.environ.get("STRANDLINE_DATA"):
        file = Path(data) / "entities" / "ourairports-entities.jsonl.xz"
        with lzma.open(file, "rt", encoding="utf-8") as opened:
            lines = opened.readlines()
        if quick:
            lines = lines[-20_000:]
            file = folder / "quick.jsonl"
            file.write_text("".join(lines))
        return file, _types_of(lines), len(lines)
    file = folder / "generated.jsonl"
    count = 10_000 if quick else GENERATED_ROWS
    with file.open("wb") as output:
        for record in itertools.islice(records(random.Random(4), itertools.count()), count):
            output.write(
                b'{"type":"%s","id":"%s","data":%s}\n' % (tenant.TYPE.encode(), record.id.encode(), record.data)
            )
    return file, {tenant.TYPE: {"schema": tenant.SCHEMA, "indexes": _indexes(tenant.INDEXES)}}, count


def _types_of(lines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Types that fit *lines*: each property with the JSON types that it has there."""
    kinds: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in map(json.loads, lines):
        for key, value in row["data"].items():
            kinds[row["type"]][key].add(_JSON_TYPES[type(value)])
    return {
        name: {
            "schema": {"type": "object", "properties": {key: {"type": sorted(of)} for key, of in fields.items()}},
            "indexes": _indexes([field] for field in REAL_INDEXES[name]),
        }
        for name, fields in kinds.items()
    }


def _indexes(fields: Iterable[Sequence[str]]) -> list[dict[str, Any]]:
    return [{"fields": list(each)} for each in fields]
