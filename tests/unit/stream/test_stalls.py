"""Which streams are hung up on, and which are left alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from services.runtime.call import Call, Namespace, Principal
from services.runtime.errors import Error, NotFound
from services.stream.stalls import Stalls

GONE = NotFound("NOT_FOUND", "there is no such namespace, or you are not a member of it")
ANN = Principal("ann", "her-session", frozenset(), expires_at=0)
CALL = Call(metadata={}, principal=ANN, namespace=Namespace("tides", "00000001"))


@dataclass(eq=False)
class Stream:
    """One whose check does what *verdict* says, and tells that it was asked."""

    waits_since: float | None = field(default_factory=lambda: time.monotonic() - 60)
    verdict: Callable[[], None] = lambda: None
    slow: asyncio.Event | None = None
    asked: int = 0
    told: list[Error] = field(default_factory=list)

    async def check(self) -> None:
        self.asked += 1
        if self.slow is not None:
            await self.slow.wait()
        self.verdict()

    async def was_asked(self, times: int) -> None:
        await until(lambda: self.asked >= times)


def refuse() -> None:
    raise GONE


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


@pytest.fixture
async def stalls(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stalls]:
    """Which looks all the time."""
    monkeypatch.setattr("services.stream.stalls.SWEEP_SECONDS", 0.01)
    monkeypatch.setattr("services.stream.stalls.STALLED_SECONDS", 0.01)
    stalls = Stalls()
    running = asyncio.create_task(stalls.run())
    yield stalls
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_reader_that_takes_nothing_and_may_have_no_more_is_hung_up_on_and_told_why(stalls: Stalls) -> None:
    stream = Stream(verdict=refuse)
    with stalls.looking_after(stream, CALL, stream.told.append):
        await until(lambda: stream.told)
    assert stream.told[0] is GONE


@pytest.mark.parametrize(
    ("call", "what"),
    [(CALL, "tides"), (Call(metadata={}, principal=ANN), "a connection of many watches")],
    ids=["a feed", "many watches"],
)
async def test_a_hang_up_leaves_one_line_that_says_whose_stream_it_was_and_why(
    stalls: Stalls, caplog: pytest.LogCaptureFixture, call: Call, what: str
) -> None:
    caplog.set_level("INFO", "services.stream.stalls")
    stubborn, other = Stream(verdict=refuse), Stream()
    with stalls.looking_after(stubborn, call, stubborn.told.append):
        await until(lambda: stubborn.told)
        with stalls.looking_after(other, CALL, other.told.append):
            await other.was_asked(3)  # who is asked so often finds the first one stalled as often
    assert stubborn.told == [GONE]
    assert caplog.messages == [f"ann takes nothing of {what} and is hung up on: NOT_FOUND: {GONE.message}"]


async def test_a_reader_that_may_have_more_is_left_alone_and_one_for_whom_nothing_waits_is_not_asked(
    stalls: Stalls,
) -> None:
    allowed, idle = Stream(), Stream(waits_since=None, verdict=refuse)
    with stalls.looking_after(allowed, CALL, allowed.told.append), stalls.looking_after(idle, CALL, idle.told.append):
        await allowed.was_asked(3)
    assert (allowed.told, idle.told, idle.asked) == ([], [], 0)


async def test_a_reader_that_takes_something_while_it_is_asked_about_is_told_in_the_stream(stalls: Stalls) -> None:
    def taken() -> None:
        stream.waits_since = time.monotonic() + 600  # and another message waits
        refuse()

    stream, other = Stream(verdict=taken), Stream(verdict=refuse)
    with stalls.looking_after(stream, CALL, stream.told.append), stalls.looking_after(other, CALL, other.told.append):
        await until(lambda: other.told)
    assert (stream.asked, stream.told) == (1, [])


async def test_a_stream_that_has_ended_is_not_hung_up_on(stalls: Stalls) -> None:
    ended, other = Stream(verdict=refuse, slow=asyncio.Event()), Stream(verdict=refuse)
    with stalls.looking_after(ended, CALL, ended.told.append):
        await ended.was_asked(1)
    assert ended.slow is not None
    ended.slow.set()
    with stalls.looking_after(other, CALL, other.told.append):
        await until(lambda: other.told)
    assert ended.told == []


async def test_an_answer_that_is_slow_or_fails_holds_up_nobody_else(
    stalls: Stalls, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("a fault of ours")

    slow, faulty, other = Stream(slow=asyncio.Event()), Stream(verdict=fail), Stream(verdict=refuse)
    with ExitStack() as stack:
        for stream in (slow, faulty, other):
            stack.enter_context(stalls.looking_after(stream, CALL, stream.told.append))
        await until(lambda: other.told)
        await faulty.was_asked(2)
        assert (slow.asked, slow.told, faulty.told) == (1, [], [])
    assert "a fault of ours" in caplog.text
