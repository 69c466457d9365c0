"""Point reads per second over gRPC: ``GetEntity`` of eight entities by turns, 64 in flight.

In the path: HTTP/2 on the entity service's own unix socket, token and membership check (the token's signature is
checked once and then remembered), rules of the request, the coalesced query, PostgreSQL on the other core. Not in the
path: sidecars, the edge, TLS, tracing.

``entity_us_by_part`` is of another replica, with clocks in it (``anatomy``): where the CPU time of a call goes.

Wrong to conclude: what a client gets at the edge (two proxies more), or what reads cost that miss PostgreSQL's cache:
eight rows are always in memory. The ratio says what Strandline adds to grpcio, not how fast grpcio is.
"""

from __future__ import annotations

import random

from strandline.entity.v1 import entity_pb2, entity_service_pb2

from benchmarks import figures, h2load
from benchmarks.anatomy import anatomy_under_load
from benchmarks.records import records
from benchmarks.stack import Stack
from benchmarks.tenant import TYPE, tenant
from benchmarks.unary import compare

METHOD = "/strandline.entity.v1.EntityService/GetEntity"
ENTITIES = 8


async def run(stack: Stack, *, quick: bool) -> None:
    """Print ``point_reads``."""
    if not h2load.installed():
        figures.skip("point_reads", h2load.MISSING)
        return
    async with tenant(stack, indexed=False) as place:
        names = [f"{place.type_name}/entities/e-{number}" for number in range(ENTITIES)]
        for name, record in zip(names, records(random.Random(1), range(ENTITIES)), strict=True):
            write = entity_pb2.Mutation(create=entity_pb2.CreateMutation(name=name, data_json=record.data))
            await place.entities.BatchWrite(
                entity_service_pb2.BatchWriteRequest(parent=place.parent, writes=[write]), metadata=place.metadata
            )
        requests = [entity_service_pb2.GetEntityRequest(name=name) for name in names]
        answers = [await place.entities.GetEntity(request, metadata=place.metadata) for request in requests]
        for name, answer in zip(names, answers, strict=True):
            if answer.entity.name != name or answer.entity.type != TYPE or not answer.entity.data.fields["name"]:
                raise RuntimeError(f"a read of {name} was answered with {answer}")
        size = round(sum(answer.ByteSize() for answer in answers) / len(answers))
        messages = [request.SerializeToString() for request in requests]
        comparison = await compare(stack, place, METHOD, messages, size, quick=quick)
        if await place.entities.GetEntity(requests[0], metadata=place.metadata) != answers[0]:
            raise RuntimeError("the entity changed while it was only read")
        parts = await anatomy_under_load(stack.layout, METHOD, messages, place.token)
    context = comparison.context | {"entity_us_by_part": parts}
    figures.emit("point_reads", "calls/s", comparison.ours, comparison.echo, comparison.cpu, context)
