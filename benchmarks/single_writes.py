"""Durable single writes per second over gRPC: ``CreateEntity`` without an id, 64 in flight, fsync on.

In the path: all of a point read's, the schema, and the commit: group commit puts what waits into one transaction. The
revision must have grown by exactly the number of calls, or there is no figure. The same call is sent over and over, but
each makes an entity of its own (a new UUIDv7). Not in the path: sidecars, the edge, TLS, indexes, tracing.

``entity_us_by_part`` is of another replica, with clocks in it (``anatomy``): where the CPU time of a call goes.

Wrong to conclude: what one writer alone gets (it waits for its own fsync each time), or what a slower disk allows. The
ceiling is an echo: it writes nothing.
"""

from __future__ import annotations

import random

import orjson
from strandline.entity.v1 import entity_service_pb2

from benchmarks import figures, h2load
from benchmarks.anatomy import anatomy_under_load
from benchmarks.records import records
from benchmarks.stack import Stack
from benchmarks.tenant import Tenant, tenant
from benchmarks.unary import compare

METHOD = "/strandline.entity.v1.EntityService/CreateEntity"


async def run(stack: Stack, *, quick: bool) -> None:
    """Print ``single_writes``."""
    if not h2load.installed():
        figures.skip("single_writes", h2load.MISSING)
        return
    async with tenant(stack, indexed=False) as place:
        request = _request(place)
        first = await place.entities.CreateEntity(request, metadata=place.metadata)
        call, size = request.SerializeToString(), first.ByteSize()
        comparison = await compare(stack, place, METHOD, [call], size, quick=quick)
        last = await place.entities.CreateEntity(request, metadata=place.metadata)
        parts = await anatomy_under_load(stack.layout, METHOD, [call], place.token)
    written = last.revision - first.revision - 1
    if written != comparison.calls:
        raise RuntimeError(f"{comparison.calls} calls were answered, and made {written} revisions")
    context = {**comparison.context, "revisions": written, "entity_us_by_part": parts}
    figures.emit("single_writes", "calls/s", comparison.ours, comparison.echo, comparison.cpu, context)


def _request(place: Tenant) -> entity_service_pb2.CreateEntityRequest:
    (record,) = records(random.Random(2), range(1))
    request = entity_service_pb2.CreateEntityRequest(parent=place.type_name)
    request.entity.data.update(orjson.loads(record.data))
    return request
