"""Requests to receivers: to the address that was looked at and to no other, with little patience."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from services.runtime.errors import Unavailable
from services.stream.egress import MAX_RESPONSE, Answer, Egress, EgressFailure
from services.stream.endpoints import Endpoint, parse_endpoint
from services.stream.lookups import MAX_RUNNING, MAX_RUNNING_OF_ONE

from .receiver import Behaviour, HookReceiver, drip, flood, garbage, reset, silence, status

Names = dict[str, list[str]]


class Resolver:
    """The system's resolver, with an answer of the test's own for each name, and a count of the questions."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        if host not in self.names:
            raise socket.gaierror(socket.EAI_NONAME, "unknown 10.1.2.3")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.names[host]]


@asynccontextmanager
async def egress(*receivers: HookReceiver, seconds: float = 30, names: Names | None = None) -> AsyncIterator[Egress]:
    resolver: Callable[..., Any] = socket.getaddrinfo if names is None else Resolver(names)
    made = Egress([server.opened for server in receivers], seconds=seconds, get_addresses=resolver)
    try:
        yield made
    finally:
        await made.close()


async def post(made: Egress, url: str, *receivers: HookReceiver) -> Answer:
    endpoint = parse_endpoint(url, [server.opened for server in receivers])
    return await made.post("tides", endpoint, {"webhook-id": "1"}, b'{"a":1}')


async def reason(made: Egress, url: str, *receivers: HookReceiver) -> str:
    with pytest.raises(EgressFailure) as raised:
        await post(made, url, *receivers)
    assert "10.1.2.3" not in raised.value.message
    assert "127.0.0.1" not in raised.value.message
    return raised.value.reason


async def test_a_receiver_gets_the_body_and_no_header_that_it_was_not_meant_to_get(receiver: HookReceiver) -> None:
    async with egress(receiver) as made:
        answer = await post(made, receiver.url("/a%20b?c=%2F"), receiver)
    assert (answer.status, answer.body) == (204, b"")
    (request,) = receiver.requests
    assert request.target == "/a%20b?c=%2F"
    assert request.body == b'{"a":1}'
    assert set(request.headers) == {
        "host",
        "accept",
        "accept-encoding",
        "user-agent",
        "content-length",
        "content-type",
        "webhook-id",
    }


@pytest.mark.parametrize("code", [200, 301, 302, 307, 308, 400, 410, 429, 500, 503])
async def test_every_status_is_an_answer_and_no_redirect_is_followed(receiver: HookReceiver, code: int) -> None:
    receiver.behaviour = status(code, b"because", location=receiver.url("/elsewhere"), retry_after="7")
    async with egress(receiver) as made:
        answer = await post(made, receiver.url(), receiver)
    assert (answer.status, answer.body, answer.headers["retry-after"]) == (code, b"because", "7")
    assert [request.target for request in receiver.requests] == ["/hook"]


@pytest.mark.parametrize(
    ("behaviour", "seconds", "expected"),
    [
        (silence, 1, "TIMEOUT"),
        (drip, 1, "TIMEOUT"),
        (reset, 30, "CONNECTION_FAILED"),
        (garbage, 30, "BAD_RESPONSE"),
    ],
    ids=["silence", "drip", "reset", "garbage"],
)
async def test_a_receiver_that_does_not_answer_is_a_failure(
    receiver: HookReceiver, behaviour: Behaviour, seconds: float, expected: str
) -> None:
    receiver.behaviour = behaviour
    async with egress(receiver, seconds=seconds) as made:
        assert await reason(made, receiver.url(), receiver) == expected


async def test_of_a_body_without_end_64_kib_are_read(receiver: HookReceiver) -> None:
    receiver.behaviour = flood
    async with egress(receiver) as made:
        answer = await post(made, receiver.url(), receiver)
    assert answer.status == 200
    assert len(answer.body) == MAX_RESPONSE


async def test_a_body_that_says_it_is_compressed_is_left_as_it_is(receiver: HookReceiver) -> None:
    receiver.behaviour = status(200, b"\x1f\x8b not really", content_encoding="gzip")
    async with egress(receiver) as made:
        assert (await post(made, receiver.url(), receiver)).body == b"\x1f\x8b not really"


async def test_a_header_without_end_is_no_answer(receiver: HookReceiver) -> None:
    receiver.behaviour = status(200, x_long="x" * 100_000)
    async with egress(receiver) as made:
        assert await reason(made, receiver.url(), receiver) == "BAD_RESPONSE"


async def test_a_receiver_that_is_not_there_is_a_failure(receiver: HookReceiver) -> None:
    await receiver.stop()
    async with egress(receiver) as made:
        assert await reason(made, receiver.url(), receiver) == "CONNECTION_FAILED"


async def test_a_certificate_of_another_authority_is_refused(receiver: HookReceiver, tmp_path: Path) -> None:
    other = HookReceiver(tmp_path)
    other.port = receiver.port
    async with egress(other) as made:
        assert await reason(made, receiver.url(), other) == "TLS_FAILED"
    assert receiver.requests == []


async def test_a_certificate_of_another_name_is_refused(tmp_path: Path) -> None:
    receiver = HookReceiver(tmp_path, name="localhost", certified="hooks.example.com")
    await receiver.start()
    async with egress(receiver) as made:
        assert await reason(made, receiver.url(), receiver) == "TLS_FAILED"
    await receiver.stop()
    assert receiver.requests == []


@pytest.fixture
async def named(tmp_path: Path) -> AsyncIterator[HookReceiver]:
    """A receiver whose name no resolver but the test's own knows."""
    receiver = HookReceiver(tmp_path, name="hooks.test")
    await receiver.start()
    yield receiver
    await receiver.stop()


async def test_the_name_is_resolved_once_and_the_certificate_is_asked_for_by_name(named: HookReceiver) -> None:
    resolver = Resolver({"hooks.test": ["127.0.0.1"]})
    made = Egress([named.opened], seconds=30, get_addresses=resolver)
    await post(made, named.url(), named)
    await post(made, named.url(), named)
    await made.close()
    assert resolver.asked == ["hooks.test"]  # the second request went over the connection that was there
    assert [request.server_name for request in named.requests] == ["hooks.test"] * 2
    assert named.connections == 1


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["8.8.8.8", "127.0.0.1"],
        ["10.0.0.7"],
        ["169.254.169.254"],
        ["::1"],
        ["::ffff:127.0.0.1"],
        ["fe80::1%1"],
    ],
    ids=str,
)
async def test_a_public_name_that_leads_inside_is_not_connected_to(addresses: list[str]) -> None:
    listener = await asyncio.start_server(lambda reader, writer: pytest.fail("connected"), "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with egress(names={"hooks.example.com": addresses}) as made:
        with pytest.raises(EgressFailure) as raised:
            await made.post("tides", Endpoint(f"https://hooks.example.com:{port}/", "hooks.example.com", port), {}, b"")
    listener.close()
    await listener.wait_closed()
    assert raised.value.reason == "ADDRESS_REFUSED"


async def test_an_open_receiver_opens_its_own_port_and_nothing_else_on_loopback(receiver: HookReceiver) -> None:
    async with egress(receiver, names={"hooks.example.com": ["127.0.0.1"]}) as made:
        other = Endpoint(f"https://hooks.example.com:{receiver.port}/", "hooks.example.com", receiver.port)
        with pytest.raises(EgressFailure) as raised:
            await made.post("tides", other, {}, b"")
    assert raised.value.reason == "ADDRESS_REFUSED"
    assert receiver.connections == 0


async def test_a_receiver_of_the_topology_that_leads_outside_is_refused(named: HookReceiver) -> None:
    async with egress(named, names={"hooks.test": ["10.0.0.7"]}) as made:
        assert await reason(made, named.url(), named) == "ADDRESS_REFUSED"


async def test_a_name_that_starts_to_lead_inside_is_refused_at_its_next_connection(named: HookReceiver) -> None:
    named.behaviour = status(200, b"", connection="close")
    names = {"hooks.test": ["127.0.0.1"]}
    async with egress(named, names=names) as made:
        await post(made, named.url(), named)
        names["hooks.test"] = ["10.0.0.7"]
        assert await reason(made, named.url(), named) == "ADDRESS_REFUSED"


async def test_a_name_that_is_not_known_is_a_failure_without_what_the_resolver_said(receiver: HookReceiver) -> None:
    async with egress(names={}) as made:
        assert await reason(made, "https://hooks.example.com/") == "NAME_NOT_FOUND"


class HangingResolver(Resolver):
    """Says nothing about a name that it does not know, until it is ``released``. ``hanging`` look-ups wait for that."""

    def __init__(self, names: Names) -> None:
        super().__init__(names)
        self.hanging = 0
        self.released = threading.Event()
        self._changed = threading.Condition()

    def __call__(self, host: str, port: int, **more: Any) -> list[tuple[Any, ...]]:
        if host not in self.names:
            self._change(1)
            self.released.wait()
            self._change(-1)
        return super().__call__(host, port, **more)

    def _change(self, by: int) -> None:
        with self._changed:
            self.hanging += by
            self._changed.notify_all()

    async def wait_for(self, count: int) -> None:
        """Wait until *count* look-ups hang."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: self.hanging == count, 30)

        assert await asyncio.to_thread(wait)


@asynccontextmanager
async def hanging(receiver: HookReceiver, seconds: float) -> AsyncIterator[tuple[Egress, HangingResolver]]:
    """Only the name of *receiver* is answered for."""
    resolver = HangingResolver({receiver.name: ["127.0.0.1"]})
    made = Egress([receiver.opened], seconds=seconds, get_addresses=resolver)
    try:
        yield made, resolver
    finally:
        resolver.released.set()
        await made.close()


async def of_dead_name(made: Egress, namespace: str) -> str:
    """What comes of a request of *namespace* to a name that nobody says anything about."""
    try:
        await made.post(namespace, parse_endpoint("https://dead.example.com/"), {}, b"")
    except EgressFailure as failure:
        return failure.reason
    except Unavailable as failure:
        return failure.reason
    raise AssertionError("there was an answer")


async def test_names_that_nobody_answers_for_leave_room_for_the_names_of_other_namespaces(named: HookReceiver) -> None:
    async with hanging(named, seconds=60) as (made, resolver):
        dead = [asyncio.create_task(of_dead_name(made, "reefs")) for _ in range(MAX_RUNNING)]
        await resolver.wait_for(MAX_RUNNING_OF_ONE)
        endpoint = parse_endpoint(named.url(), [named.opened])
        assert (await made.post("tides", endpoint, {}, b"")).status == 204
        assert resolver.hanging == MAX_RUNNING_OF_ONE
        for task in dead:
            task.cancel()
        await asyncio.gather(*dead, return_exceptions=True)


async def test_a_look_up_counts_until_the_resolver_is_done_with_it_and_who_finds_no_room_was_not_tried(
    named: HookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.lookups.PATIENCE_SECONDS", 0.05)
    async with hanging(named, seconds=0.2) as (made, resolver):
        outcomes = await asyncio.gather(*(of_dead_name(made, "reefs") for _ in range(MAX_RUNNING_OF_ONE)))
        assert outcomes == ["TIMEOUT"] * MAX_RUNNING_OF_ONE
        assert await of_dead_name(made, "reefs") == "OVERLOADED"
        assert len(resolver.asked) == 0
        resolver.released.set()
        await resolver.wait_for(0)
        async with asyncio.timeout(30):
            while await of_dead_name(made, "reefs") != "NAME_NOT_FOUND":
                pass


async def test_waiting_for_a_turn_uses_up_nothing_of_the_time_for_an_answer(
    named: HookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.stream.lookups.PATIENCE_SECONDS", 600)
    async with hanging(named, seconds=0.2) as (made, resolver):
        held = [asyncio.create_task(of_dead_name(made, "reefs")) for _ in range(MAX_RUNNING_OF_ONE)]
        await resolver.wait_for(MAX_RUNNING_OF_ONE)
        waiting = asyncio.create_task(of_dead_name(made, "reefs"))
        assert set(await asyncio.gather(*held)) == {"TIMEOUT"}
        await asyncio.sleep(0.5)
        assert not waiting.done()
        resolver.released.set()
        assert await waiting in ("NAME_NOT_FOUND", "TIMEOUT")


async def test_proxies_in_the_environment_do_not_count(receiver: HookReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    async with egress(receiver) as made:
        assert (await post(made, receiver.url(), receiver)).status == 204
