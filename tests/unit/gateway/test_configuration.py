"""What the generated files hold, without running them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from google.api import annotations_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from strandline_gateway import Edge, RateLimit, Service, Tls, Topology, generate
from strandline_gateway.descriptor import rpcs
from strandline_gateway.transcoding import envoy_descriptor_set

TOPOLOGY = Topology(
    edge=Edge(
        listen="127.0.0.1:8080",
        admin_socket="/run/edge-admin.sock",
        jwks_socket="/run/edge-jwks.sock",
        certificates="/certs/edge",
        auth_rate_limit=RateLimit(requests=7, seconds=60),
        tls=Tls(certificate="/tls/cert.pem", key="/tls/key.pem"),
    ),
    services=(
        Service(
            name="stream",
            address="stream.strandline.svc:9443",
            listen="0.0.0.0:9443",  # as in a cluster
            app_socket="/run/stream.sock",
            http_socket="/run/stream-http.sock",
            admin_socket="/run/stream-sidecar-admin.sock",
            certificates="/certs/stream",
            outbound={"user": "/run/stream-to-user.sock"},
        ),
        Service(
            name="user",
            address="127.0.0.1:9444",
            app_socket="/run/user.sock",
            admin_socket="/run/user-sidecar-admin.sock",
            certificates="/certs/user",
        ),
    ),
)


# Routes that refuse.
NOWHERE = {"wrong-method", "nothing"}


def edge_routes(topology: Topology = TOPOLOGY) -> list[dict[str, Any]]:
    config = json.loads(generate(topology)["edge.yaml"])
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    [host] = manager["route_config"]["virtual_hosts"]
    routes: list[dict[str, Any]] = host["routes"]
    return routes


def test_there_is_one_file_for_the_edge_and_one_for_each_sidecar() -> None:
    assert set(generate(TOPOLOGY)) == {"edge.yaml", "stream-sidecar.yaml", "user-sidecar.yaml"}


def test_the_same_topology_gives_the_same_text() -> None:
    assert generate(TOPOLOGY) == generate(TOPOLOGY)


def test_a_topology_survives_json() -> None:
    assert Topology.from_json(json.dumps(dataclasses.asdict(TOPOLOGY))) == TOPOLOGY


def test_an_unknown_key_of_a_topology_is_refused() -> None:
    raw = dataclasses.asdict(TOPOLOGY) | {"trust_domian": "typo"}
    with pytest.raises(TypeError, match="trust_domian"):
        Topology.from_json(json.dumps(raw))


def test_whatever_leads_to_replicas_sends_a_namespace_to_the_same_one() -> None:
    hashes = [{"header": {"header_name": "x-goog-request-params"}}]
    routes = [route for route in edge_routes() if route["name"] not in NOWHERE]
    for file in ("edge.yaml", "stream-sidecar.yaml"):
        resources = json.loads(generate(TOPOLOGY)[file])["static_resources"]
        reached = {cluster["name"]: cluster for cluster in resources["clusters"] if "transport_socket" in cluster}
        assert {cluster["lb_policy"] for cluster in reached.values()} == {"RING_HASH"}
        for listener in resources["listeners"]:
            manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
            if listener["name"].startswith("to-"):
                routes += manager["route_config"]["virtual_hosts"][0]["routes"]
    assert all(route["route"]["hash_policy"] == hashes for route in routes)


# A stream without end that REST's callers have another form of.
ONLY_GRPC = {"SubscriptionService.StreamingPull"}


def test_every_public_rpc_has_a_grpc_route_and_a_rest_route() -> None:
    names = [route["name"] for route in edge_routes() if route["name"] not in NOWHERE]
    public = [rpc for rpc in rpcs() if rpc.is_public]
    assert sorted(names) == sorted(
        [rpc.path for rpc in public]
        + [rpc.name for rpc in public if rpc.name not in ONLY_GRPC]
        + [f"{rpc.name} by cookie" for rpc in public if rpc.access.watch_cookie]
    )


def test_no_tcp_port_is_shared_with_other_processes() -> None:
    for text in generate(TOPOLOGY).values():
        for listener in json.loads(text)["static_resources"]["listeners"]:
            assert ("socket_address" in listener["address"]) == (listener.get("enable_reuse_port") is False)


def test_nothing_between_services_has_a_route_at_the_edge() -> None:
    text = json.dumps(edge_routes())
    assert [rpc.name for rpc in rpcs() if not rpc.is_public and rpc.method.name in text] == []


def test_every_route_that_needs_a_token_says_so() -> None:
    open_names = {name for rpc in rpcs() if not rpc.needs_token for name in (rpc.path, rpc.name)} | NOWHERE
    for route in edge_routes():
        requirement = route["typed_per_filter_config"]["envoy.filters.http.jwt_authn"]
        assert (requirement.get("disabled", False)) == (route["name"] in open_names), route["name"]


def test_a_rate_limit_can_be_switched_off() -> None:
    unlimited = dataclasses.replace(TOPOLOGY, edge=dataclasses.replace(TOPOLOGY.edge, auth_rate_limit=None))
    assert "local_ratelimit" in generate(TOPOLOGY)["edge.yaml"]
    assert "ratelimit.v3" not in generate(unlimited)["edge.yaml"]


def test_hsts_is_sent_only_over_tls() -> None:
    plain = dataclasses.replace(TOPOLOGY, edge=dataclasses.replace(TOPOLOGY.edge, tls=None))
    assert "strict-transport-security" in generate(TOPOLOGY)["edge.yaml"]
    assert "strict-transport-security" not in generate(plain)["edge.yaml"]


def test_a_service_listens_where_it_is_told_and_is_reached_by_its_name() -> None:
    sidecar = json.loads(generate(TOPOLOGY)["stream-sidecar.yaml"])["static_resources"]["listeners"][0]
    assert sidecar["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 9443}  # noqa: S104
    clusters = {c["name"]: c for c in json.loads(generate(TOPOLOGY)["edge.yaml"])["static_resources"]["clusters"]}
    assert clusters["stream"]["type"] == clusters["stream-http"]["type"] == "STRICT_DNS"
    assert clusters["user"]["type"] == "STATIC"


def test_the_descriptor_for_envoy_is_complete_and_small() -> None:
    files = descriptor_pb2.FileDescriptorSet.FromString(envoy_descriptor_set())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    assert pool.FindMessageTypeByName("google.rpc.ErrorInfo")
    assert pool.FindMethodByName("strandline.entity.v1.EntityService.GetEntity").output_type.name == "Entity"
    assert files.ByteSize() < 96 * 1024
    for file in files.file:
        for service in file.service:
            for method in service.method:
                assert not method.options.Extensions[annotations_pb2.http].response_body
