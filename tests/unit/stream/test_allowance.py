"""How many streams a user may have, and until when one counts."""

from __future__ import annotations

import asyncio

import pytest

from services.runtime.call import Call, Principal
from services.runtime.errors import ResourceExhausted
from services.stream.allowance import Allowance


def call_of(user: str) -> Call:
    return Call(metadata={}, principal=Principal(user, "a-session", frozenset(), expires_at=0))


ANN, BOB = call_of("ann"), call_of("bob")


def has_room(allowance: Allowance, call: Call) -> bool:
    try:
        allowance.take(call)
    except ResourceExhausted:
        return False
    allowance.give_back(call)
    return True


@pytest.fixture
def allowance() -> Allowance:
    return Allowance(2, "TOO_MANY", "there are as many as one may have")


def test_each_user_has_as_many_as_the_limit_says(allowance: Allowance) -> None:
    for call in (ANN, BOB):
        allowance.take(call)
        assert has_room(allowance, call)
        allowance.take(call)
        with pytest.raises(ResourceExhausted, match="as many as") as refusal:
            allowance.take(call)
        assert (refusal.value.reason, refusal.value.metadata) == ("TOO_MANY", {"limit": "2"})
    allowance.give_back(ANN)
    assert has_room(allowance, ANN)
    assert not has_room(allowance, BOB)


async def test_what_is_given_back_with_its_task_counts_until_that_has_ended(allowance: Allowance) -> None:
    over, closed = asyncio.Event(), asyncio.Event()

    async def handle() -> None:
        allowance.take(ANN)
        allowance.give_back_with_task(ANN)
        closed.set()
        await over.wait()

    tasks = [asyncio.create_task(handle()) for _ in range(2)]
    await closed.wait()
    await asyncio.sleep(0)
    assert not has_room(allowance, ANN)
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    assert has_room(allowance, ANN)
    over.set()
    await asyncio.gather(tasks[1])
