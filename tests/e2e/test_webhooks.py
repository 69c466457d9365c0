"""A webhook through the edge, from REST to a receiver on loopback that this platform's topology opens."""

from __future__ import annotations

import asyncio

from tests.integration.stream.receiver import HookReceiver, status

from .local_platform import Platform
from .rest import Rest

SUBSCRIPTIONS = "/v1/namespaces/demo/subscriptions"
HOOK = f"{SUBSCRIPTIONS}/hook"
ENTITIES = "/v1/namespaces/demo/types/gauge/entities"
ANY = {"type": "object", "additionalProperties": True}


async def test_a_webhook_gets_every_change_signed_although_the_service_is_killed(
    platform: Platform, receiver: HookReceiver
) -> None:
    rest = Rest(platform.rest, platform.token())
    try:
        await rest.ok("POST", "/v1/namespaces/demo/types", {"schema": ANY}, params={"type_id": "gauge"})
        await _refusals(rest, receiver)
        await _deliver(platform, rest, receiver)
        await _change(rest)
        await rest.ok("DELETE", HOOK)
    finally:
        await rest.close()


async def _refusals(rest: Rest, receiver: HookReceiver) -> None:
    for endpoint in (
        "http://127.0.0.1/",
        "https://169.254.169.254/",
        "https://[::ffff:10.0.0.1]/",
        f"https://localhost:{receiver.port}/",
        f"https://127.0.0.1:{receiver.port + 1}/",
    ):
        body = {"start": {"now": True}, "push": {"endpoint": endpoint}}
        refused = await rest("POST", SUBSCRIPTIONS, body, params={"subscription_id": "hook"})
        assert refused.problem == (400, "INVALID_FIELD")
        assert [violation["field"] for violation in refused.json["violations"]] == ["subscription.push.endpoint"]
    missing = await rest("POST", f"{HOOK}:testWebhook", {})
    assert missing.problem == (404, "NOT_FOUND")


async def _deliver(platform: Platform, rest: Rest, receiver: HookReceiver) -> None:
    body = {"types": ["gauge"], "start": {"now": True}, "push": {"endpoint": receiver.url("/hook?x=%2F")}}
    made = await rest.ok("POST", SUBSCRIPTIONS, body, params={"subscription_id": "hook"})
    secret = made["push"]["secret"]
    assert made["push"]["state"] == "ENABLED"

    revisions: list[tuple[str, int]] = []
    for number in range(20):
        written = await rest("PATCH", f"{ENTITIES}/g{number % 3}?allow_missing=true", {"data": {"n": number}})
        assert written.status == 200, written
        revisions.append((f"g{number % 3}", written.position[1]))
        if number == 10:
            await asyncio.to_thread(platform.kill, "stream")
    await asyncio.to_thread(platform.wait_until_ready)
    # What was under way when the service was killed comes again after the acknowledgement deadline of 10 s.
    async with asyncio.timeout(60):
        while {revision for _, revision in _arrived(receiver)} != {revision for _, revision in revisions}:
            await receiver.wait_for(len(receiver.requests) + 1)
    for gauge in ("g0", "g1", "g2"):
        first_times = list(dict.fromkeys(revision for name, revision in _arrived(receiver) if name == gauge))
        assert first_times == [revision for name, revision in revisions if name == gauge]
    assert all(request.is_signed_by(secret) for request in receiver.requests)

    receiver.behaviour = status(500, b"not today")
    tested = await rest.ok("POST", f"{HOOK}:testWebhook", {})
    assert (tested["outcome"], tested["status"], tested["detail"]) == ("HTTP_STATUS", 500, "not today")
    newest = (await rest.ok("GET", f"{HOOK}/deliveries", params={"page_size": "1"}))["deliveries"][0]
    assert newest == tested
    receiver.behaviour = status(204)
    rotated = await rest.ok("POST", f"{HOOK}:rotateSecret", {"overlap": "60s"})
    assert (await rest.ok("POST", f"{HOOK}:testWebhook", {}))["outcome"] == "DELIVERED"
    assert receiver.requests[-1].is_signed_by(secret)
    assert receiver.requests[-1].is_signed_by(rotated["secret"])
    assert (await rest.ok("POST", f"{HOOK}:enableWebhook", {}))["state"] == "ENABLED"
    shown = await rest.ok("GET", HOOK)
    assert "whsec_" not in str(shown)
    assert "whsec_" not in "".join(path.read_text() for path in (platform.home / "logs").glob("*.log"))


async def _change(rest: Rest) -> None:
    """What was read is changed and sent back; what cannot be changed is refused."""
    shown = await rest.ok("GET", HOOK)
    changed = await rest.ok("PATCH", HOOK, shown | {"maxInFlight": 7})
    assert (changed["maxInFlight"], changed["push"]) == (7, shown["push"])
    push = {"push": {"disableAfter": "60s"}}
    changed = await rest.ok("PATCH", HOOK, push, params={"update_mask": "push.disableAfter"})
    assert changed["push"] == shown["push"] | push["push"]
    mine = {"endpoint": shown["push"]["endpoint"], "secret": "whsec_aaaa"}
    for body, field in (
        ({"start": {"now": True}}, "start"),
        ({"state": "STALLED"}, "state"),
        ({"push": mine}, "push.secret"),
    ):
        refused = await rest("PATCH", HOOK, body)
        assert refused.problem == (400, "INVALID_FIELD")
        assert [violation["field"] for violation in refused.json["violations"]] == [f"subscription.{field}"]
    assert (await rest("POST", f"{HOOK}:seek", {})).problem == (400, "START_REQUIRED")
    assert (await rest("POST", f"{HOOK}:seek", {"start": {}})).problem == (400, "START_REQUIRED")


def _arrived(receiver: HookReceiver) -> list[tuple[str, int]]:
    changes = [
        (request, change)
        for request in receiver.requests
        if request.json["type"] != "webhook.test"
        for change in request.json["units"]["units"][0]["changes"]
    ]
    return [(change["entity"]["name"].rsplit("/", 1)[1], int(request.json["revision"])) for request, change in changes]
