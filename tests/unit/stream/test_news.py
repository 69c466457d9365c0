"""Who waits for news is woken by it, unless it takes it where it waits."""

from __future__ import annotations

import asyncio

import pytest

from services.stream.news import News, Take


class Sleeper:
    """Waits for *news*; takes what comes as long as ``answers`` say so, and remembers that it was asked."""

    def __init__(self, news: News, *answers: bool | Exception) -> None:
        self.asked = 0
        self._answers = list(answers)
        self.task = asyncio.create_task(news.wait(self._take))

    def _take(self) -> bool:
        self.asked += 1
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def news() -> News:
    return News()


async def turn() -> None:
    """Let every task run that can."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_who_takes_what_is_new_sleeps_on(news: News) -> None:
    sleeper = Sleeper(news, True, True, False)
    await turn()
    for asked in (1, 2):
        news.tell()
        await turn()
        assert (sleeper.asked, sleeper.task.done()) == (asked, False)
    news.tell()
    await turn()
    assert (sleeper.asked, sleeper.task.done()) == (3, True)


async def test_who_cannot_take_it_is_woken_and_the_others_are_asked_all_the_same(news: News) -> None:
    sleepers = [Sleeper(news, answer) for answer in (False, True, RuntimeError("broken"), True)]
    await turn()
    news.tell()
    await turn()
    assert [sleeper.asked for sleeper in sleepers] == [1, 1, 1, 1]
    assert [sleeper.task.done() for sleeper in sleepers] == [True, False, True, False]
    news.wake()
    await turn()
    assert all(sleeper.task.done() for sleeper in sleepers)


async def test_who_is_on_the_way_to_look_is_not_asked(news: News) -> None:
    sleeper = Sleeper(news)
    await turn()
    news.wake()
    news.tell()  # before it has run: it will see both
    await turn()
    assert (sleeper.asked, sleeper.task.done()) == (0, True)


async def test_who_says_nothing_of_taking_is_woken_by_both(news: News) -> None:
    for happen in (news.tell, news.wake):
        task = asyncio.create_task(news.wait())
        await turn()
        happen()
        await turn()
        assert task.done()


async def test_who_leaves_is_asked_no_more(news: News) -> None:
    leaving, staying = Sleeper(news), Sleeper(news, True)
    await turn()
    leaving.task.cancel()
    await turn()
    news.tell()
    assert (leaving.asked, staying.asked) == (0, 1)


async def test_who_leaves_while_others_are_told_disturbs_nobody(news: News) -> None:
    tasks: list[asyncio.Task[None]] = []

    def leave() -> bool:
        tasks[1].cancel()
        return True

    takes: list[Take] = [leave, lambda: True, lambda: True]
    tasks += [asyncio.create_task(news.wait(take)) for take in takes]
    await turn()
    news.tell()
    await turn()
    assert [task.done() for task in tasks] == [False, True, False]
