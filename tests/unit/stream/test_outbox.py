"""The way from many senders to one reader."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from services.stream.outbox import Outbox


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


@given(st.lists(st.sampled_from(["put", "take", "cancel", "clear"]), max_size=40))
def test_items_come_out_in_the_order_of_putting_and_what_was_cancelled_never(steps: list[str]) -> None:
    async def run() -> None:
        outbox: Outbox[int] = Outbox()
        expected: list[int] = []  # put and not taken; the first is the reader's next
        putting: dict[int, asyncio.Task[None]] = {}
        clearing: list[asyncio.Task[None]] = []
        for number, step in enumerate(steps):
            if step == "put":
                putting[number] = asyncio.create_task(outbox.put(number))
                expected.append(number)
            elif step == "take" and expected:
                assert await asyncio.wait_for(outbox.take(), 30) == expected.pop(0)
            elif step == "cancel" and len(expected) > 1:
                victim = expected.pop()
                putting[victim].cancel()
            elif step == "clear":
                clearing.append(asyncio.create_task(outbox.clear()))
            await settle()
            waiting = {number for number, task in putting.items() if not task.done()}
            assert waiting == set(expected[1:])  # one is on its way, so its sender goes on
            assert expected or all(task.done() for task in clearing)
        for task in [*putting.values(), *clearing]:
            task.cancel()
        await asyncio.gather(*putting.values(), *clearing, return_exceptions=True)

    asyncio.run(run())


async def test_of_those_who_wait_until_it_is_clear_one_goes_and_the_others_wait_again() -> None:
    outbox: Outbox[str] = Outbox()
    await outbox.put("before")
    made: list[str] = []

    async def send(name: str) -> None:
        await outbox.clear()
        made.append(name)
        await outbox.put(name)

    senders = [asyncio.create_task(send(name)) for name in "abc"]
    await settle()
    assert made == []
    for taken, ready in (("before", ["a"]), ("a", ["a", "b"]), ("b", ["a", "b", "c"])):
        assert await outbox.take() == taken
        await settle()
        assert made == ready
    await asyncio.gather(*senders)
