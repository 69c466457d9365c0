"""Quotas and the guard against mass changes through the edge; and the accident of the real history."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator

import orjson
import pytest
from strandline_cli.home import Home
from strandline_cli.platform import Running
from strandline_cli.replay import Change, mutation
from strandline_client import ApiError, Client

from .local_platform import Platform
from .real_data import needs_data, read_units, replay
from .rest import Rest

ACCIDENT_ROWS = 91_875
ACCIDENT_UNITS = 184
ALL_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}


@pytest.fixture
async def rest(platform: Platform) -> AsyncIterator[Rest]:
    """The administrator's."""
    client = Rest(platform.rest, platform.token())
    yield client
    await client.close()


@pytest.fixture
async def guarded(rest: Rest) -> str:
    """Id of a new namespace with the guard, as it is by default."""
    made = f"guarded-{uuid.uuid4().hex[:8]}"
    await rest.ok("POST", "/v1/namespaces", {}, params={"namespace_id": made})
    return made


async def test_a_quota_is_set_by_an_administrator_read_by_members_and_holds(rest: Rest, guarded: str) -> None:
    path = f"/v1/namespaces/{guarded}"
    await rest.ok("POST", f"{path}/types", {"schema": {"type": "object"}}, params={"type_id": "ship"})
    answer = await rest.ok("PATCH", f"{path}/quota", {"maxEntities": "2"})
    assert answer["maxEntities"] == "2"
    async with asyncio.timeout(30):  # the service that counts has to hear of it
        while (await rest.ok("GET", f"{path}/usage"))["maxEntities"] != "2":
            pass
    ships = f"{path}/types/ship/entities"
    for _ in range(2):
        await rest.ok("POST", ships, {"data": {}})
    refused = await rest("POST", ships, {"data": {}})
    assert refused.problem == (429, "QUOTA_EXCEEDED")
    assert refused.json["metadata"] == {
        "quota": "entities",
        "limit": "2",
        "used": "2",
        "retry_after": "3600",
    }
    assert refused.headers["retry-after"] == "3600"
    usage = await rest.ok("GET", f"{path}/usage")
    assert (usage["entities"], usage["maxEntities"], usage["maxBytes"]) == ("2", "2", "0")
    assert [(one["type"], one["entities"]) for one in usage["types"]] == [("ship", "2")]
    assert int(usage["bytes"]) > 0


@needs_data
@pytest.mark.timeout(300)
async def test_the_accident_that_deleted_everything_is_stopped_and_can_be_confirmed(
    platform: Platform, rest: Rest, guarded: str
) -> None:
    units = list(read_units())
    first = next(
        number
        for number in range(len(units))
        if all(event.operation == "delete" for unit in units[number : number + ACCIDENT_UNITS] for event in unit)
    )
    state = replay(iter(units[:first]))
    assert len(state) == ACCIDENT_ROWS
    for type_id in {type_id for type_id, _ in state}:
        await rest.ok("POST", f"/v1/namespaces/{guarded}/types", {"schema": ALL_STRINGS}, params={"type_id": type_id})
    accident = [[Change(event.key, None) for event in unit] for unit in units[first : first + ACCIDENT_UNITS]]
    async with Running.in_home(Home(platform.home)).client() as client:
        rows = iter(state.items())
        while chunk := list(itertools.islice(rows, 500)):
            creates = [mutation(guarded, Change(key, data, creates=True), orjson.dumps) for key, data in chunk]
            await client.batch_write(guarded, creates)
        done, refusal = await delete_until_refused(client, guarded, accident)
        assert refusal is not None
        assert refusal.reason == "MASS_CHANGE_REFUSED"
        assert 0 < done * 500 <= 0.2 * ACCIDENT_ROWS + 1000
        usage = await rest.ok("GET", f"/v1/namespaces/{guarded}/usage")
        assert int(usage["entities"]) == ACCIDENT_ROWS - sum(map(len, accident[:done]))
        # Confirming says which: what else it holds of other types is asked for in its turn.
        confirmed: set[str] = set()
        while refusal is not None:
            assert refusal.metadata["operation_id"] not in confirmed
            confirmed.add(refusal.metadata["operation_id"])
            more, refusal = await delete_until_refused(
                client, guarded, accident[done:], refusal.metadata["operation_id"]
            )
            done += more
        assert done == ACCIDENT_UNITS
    assert (await rest.ok("GET", f"/v1/namespaces/{guarded}/usage"))["entities"] == "0"


async def delete_until_refused(
    client: Client, namespace: str, units: list[list[Change]], operation_id: str = ""
) -> tuple[int, ApiError | None]:
    """Send *units* until one is refused; how many were not, and the refusal."""
    for number, unit in enumerate(units):
        mutations = [mutation(namespace, change, orjson.dumps) for change in unit]
        try:
            await client.transact(namespace, mutations, confirm_operation_id=operation_id)
        except ApiError as failure:
            return number, failure
    return len(units), None
