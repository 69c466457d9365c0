"""Milliseconds from commit to delivery through the edge: 50 commits a second, each to 100 subscribers.

In the path: the writer's call over the edge and the entity service's sidecar, the entity service, the bus, the stream
service, its sidecar, the edge again; subscribers read NDJSON over HTTP/1.1, a connection each. The whole platform as
``strandline up`` runs it, nothing pinned, all on the same cores as the subscribers. Counted from the commit's stamp
(``from_stamp`` in ``delivery``). The ceiling, in turn, is the same feed at the stream service's own socket: the ratio
is what two proxies cost.
"""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from strandline.entity.v1 import entity_service_pb2, entity_service_pb2_grpc
from strandline_cli.api import Api
from strandline_cli.tokens import administrator_token

from benchmarks import figures
from benchmarks import sink as sinks
from benchmarks.delivery import SUBSCRIBERS, Latencies, round_of, writer
from benchmarks.machine import Meter
from benchmarks.tenant import SCHEMA, TYPE
from benchmarks.whole_platform import platform
from services.runtime.upstream import channel

PER_SECOND = 50


async def run(*, quick: bool) -> None:
    """Print ``edge_delivery.p50`` and ``.p99``."""
    if not sinks.installed():
        figures.skip("edge_delivery", sinks.MISSING)
        return
    seconds, rounds = (4, 1) if quick else (10, 3)
    async with platform() as running:
        token = administrator_token(running.home, running.rest)
        api, namespace = Api(running.rest, token), f"bench-{secrets.token_hex(4)}"
        api.call("POST", f"/v1/namespaces?namespaceId={namespace}", {})
        api.call("POST", f"/v1/namespaces/{namespace}/types?typeId={TYPE}", {"schema": SCHEMA})
        edge = urlsplit(running.rest).netloc
        hello = sinks.http_hello(f"/v1/namespaces/{namespace}:watch?now=true", token)
        type_name, metadata = f"namespaces/{namespace}/types/{TYPE}", (("authorization", f"Bearer {token}"),)
        through: dict[str, list[Latencies]] = {edge: [], str(running.run / "stream-http.sock"): []}
        meter = Meter(running.pids)
        async with channel(edge) as to:
            entities: entity_service_pb2_grpc.EntityServiceAsyncStub = entity_service_pb2_grpc.EntityServiceStub(to)
            first = entity_service_pb2.CreateEntityRequest(parent=type_name)
            first.entity.data.update({"name": "first", "country": "CH"})
            epoch = (await entities.CreateEntity(first, metadata=metadata)).epoch
            write = writer(entities, type_name, metadata)
            for _ in range(rounds):
                for address, seen in through.items():
                    with meter.running():
                        seen.append(
                            await round_of(running.run, address, hello, epoch, write, seconds, per_second=PER_SECOND)
                        )
    context = {
        "subscribers": SUBSCRIBERS,
        "commits_per_second": PER_SECOND,
        "sidecars": True,
        "cores": "shared",
        "smaller_is_better": True,
    }
    for percent in (50, 99):
        ours, direct = ([figures.percentile(each.from_stamp, percent) for each in seen] for seen in through.values())
        figures.emit(f"edge_delivery.p{percent}", "ms", ours, direct, meter.cores(), context)
