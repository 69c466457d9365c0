"""Of several replicas a namespace has the same one, whatever its callers speak."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import ClientSession, web
from strandline.stream.v1 import subscription_pb2, subscription_service_pb2_grpc
from strandline.stream.v1 import subscription_service_pb2 as pb

from tests.gateway_stack import Answers, Stack, Upstreams, envoy, keys_loaded, stack
from tests.loopback import HOST, free_ports

__all__ = ["stack"]

REPLICAS = 3
NAMESPACES = [f"tides-{number}" for number in range(12)]


class Replicas:
    """Clients of an edge in front of several stream services, which answer with their number."""

    def __init__(self, stack: Stack, address: str, channel: grpc.aio.Channel) -> None:
        self._token = stack.token()
        self._url = f"http://{address}/v1/namespaces"
        self._session = ClientSession(headers={"authorization": f"Bearer {self._token}"})
        self._stub: subscription_service_pb2_grpc.SubscriptionServiceAsyncStub = (
            subscription_service_pb2_grpc.SubscriptionServiceStub(channel)
        )

    async def close(self) -> None:
        await self._session.close()

    async def of_feed(self, namespace: str) -> str:
        async with self._session.get(f"{self._url}/{namespace}:watch?now=true") as response:
            return await response.text()

    async def of_rest(self, namespace: str) -> str:
        async with self._session.post(f"{self._url}/{namespace}/subscriptions/work:pull", json={}) as response:
            answer = await response.json()
        return str(answer["deliveries"][0]["id"])

    async def of_grpc(self, namespace: str, *, routed: bool = True) -> str:
        header = (("x-goog-request-params", f"namespace={namespace}"),) if routed else ()
        answer = await self._stub.Pull(
            pb.PullRequest(name=f"namespaces/{namespace}/subscriptions/work"),
            metadata=(("authorization", f"Bearer {self._token}"), *header),
        )
        return str(answer.deliveries[0].id)


@pytest.fixture
async def replicas(stack: Stack, tmp_path: Path) -> AsyncIterator[Replicas]:
    """The edge as it is generated, but for where the stream service is: on several ports, without TLS."""
    async with AsyncExitStack() as cleanup:
        (port, *ports) = free_ports(1 + 2 * REPLICAS)
        grpc_ports, http_ports = ports[:REPLICAS], ports[REPLICAS:]
        for number in range(REPLICAS):
            await serve(cleanup, str(number), grpc_ports[number], http_ports[number])
        config = json.loads((stack.folder / "edge.yaml").read_text())
        resources = config["static_resources"]
        public, keys = resources["listeners"]
        public["address"]["socket_address"]["port_value"] = port
        keys["address"]["pipe"]["path"] = str(tmp_path / "keys")
        config["admin"]["address"]["pipe"]["path"] = admin = str(tmp_path / "admin")
        clusters = {cluster["name"]: cluster for cluster in resources["clusters"]}
        clusters["jwks"]["load_assignment"]["endpoints"] = endpoints({"pipe": {"path": str(tmp_path / "keys")}})
        for name, behind in (("stream", grpc_ports), ("stream-http", http_ports)):
            addresses = ({"socket_address": {"address": HOST, "port_value": each}} for each in behind)
            clusters[name]["load_assignment"]["endpoints"] = endpoints(*addresses)
            del clusters[name]["transport_socket"]
        (tmp_path / "edge.yaml").write_text(json.dumps(config))
        await cleanup.enter_async_context(envoy(tmp_path, "edge", admin))
        await keys_loaded(admin)
        channel = await cleanup.enter_async_context(grpc.aio.insecure_channel(f"{HOST}:{port}"))
        found = Replicas(stack, f"{HOST}:{port}", channel)
        cleanup.push_async_callback(found.close)
        yield found


def endpoints(*addresses: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"lb_endpoints": [{"endpoint": {"address": address}} for address in addresses]}]


async def serve(cleanup: AsyncExitStack, number: str, grpc_port: int, http_port: int) -> None:
    async def pull(_request: Any, _context: Any) -> pb.PullResponse:
        return pb.PullResponse(deliveries=[subscription_pb2.Delivery(id=number)])

    async def feed(_request: web.Request) -> web.Response:
        return web.Response(text=number)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Answers(Upstreams(answers={"SubscriptionService.Pull": pull}))])
    server.add_insecure_port(f"{HOST}:{grpc_port}")
    await server.start()
    cleanup.push_async_callback(server.stop, None)
    application = web.Application()
    application.router.add_get("/{path:.*}", feed)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    cleanup.push_async_callback(runner.cleanup)
    await web.TCPSite(runner, HOST, http_port).start()


async def test_a_namespace_has_the_same_replica_by_grpc_and_by_rest_and_all_replicas_have_some(
    replicas: Replicas,
) -> None:
    homes = {namespace: await replicas.of_grpc(namespace) for namespace in NAMESPACES}
    for _ in range(3):
        assert {namespace: await replicas.of_grpc(namespace) for namespace in NAMESPACES} == homes
        assert {namespace: await replicas.of_rest(namespace) for namespace in NAMESPACES} == homes
    assert len(set(homes.values())) > 1


async def test_so_have_its_feeds(replicas: Replicas) -> None:
    homes = {namespace: await replicas.of_feed(namespace) for namespace in NAMESPACES}
    for _ in range(3):
        assert {namespace: await replicas.of_feed(namespace) for namespace in NAMESPACES} == homes
    assert len(set(homes.values())) > 1


async def test_without_the_header_a_call_is_answered_by_any(replicas: Replicas) -> None:
    assert {await replicas.of_grpc("tides", routed=False) for _ in range(60)} == {"0", "1", "2"}
