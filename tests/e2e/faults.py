"""What is done to a running platform while it is written to and read, one thing or two at a time.

Each fault is over when ``strike`` returns, but for the start of the processes that it has ended.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

from strandline_cli import envoys, services
from strandline_cli.parts import Layout
from strandline_cli.platform import Running

from .oracle import TYPES, Watcher, World, until

Kind: TypeAlias = Literal["kill", "drain", "pause", "hold", "lose", "roll", "slow", "cut", "purge"]
SERVICES = ("user", "entity", "stream")
PROXIES = ("edge", "user-sidecar", "entity-sidecar", "stream-sidecar")
# What asks a part for an orderly end. PostgreSQL would wait for its clients at a SIGTERM.
_ORDERLY = {"postgres": signal.SIGINT}
# Of readers that do not read: as much as no buffer between them and the service holds, and its ring neither.
_BULK = 30_000
_BULK_BYTES = 6 * 2**20


@dataclass
class Scene:
    """What a fault finds: a platform, what is written, and who reads. ``ended`` are the processes that it has ended."""

    running: Running
    world: World
    readers: list[Watcher]
    chance: random.Random
    ended: set[tuple[str, int]] = field(default_factory=set)

    async def pid(self, part: str) -> int:
        """The process of *part* that was not ended yet, as soon as there is one."""
        pids: list[int] = []

        async def lives() -> bool:
            if (pid := self.running.pid(part)) is None or (part, pid) in self.ended:
                return False
            pids.append(pid)
            return True

        await until(lives)
        return pids[-1]

    async def end(self, part: str, signum: signal.Signals) -> None:
        """Send *signum*, which ends the part's process, sooner or later."""
        pid = await self.pid(part)
        self.ended.add((part, pid))
        with suppress(ProcessLookupError):
            os.kill(pid, signum)

    async def serves(self, part: str) -> None:
        """Return when a process of *part*, a service or a proxy, that was not ended answers."""
        await self.pid(part)
        state = self.running.home.load_state()
        assert state is not None
        layout = Layout(self.running.home, state.path, state.ports)
        parts = (*services.parts(layout), *envoys.sidecars(layout), envoys.edge(layout))
        (found,) = (process for process in parts if process.name == part)
        await until(found.ready)

    async def written(self, revision: int) -> None:
        """Return when the head is beyond *revision*."""

        async def is_there() -> bool:
            return self.world.head > revision

        await until(is_there)


async def _kill(scene: Scene, part: str) -> None:
    await scene.end(part, signal.SIGKILL)


async def _drain(scene: Scene, part: str) -> None:
    await scene.end(part, _ORDERLY.get(part, signal.SIGTERM))


async def _pause(scene: Scene, part: str) -> None:
    """For a moment."""
    await _stopped(await scene.pid(part), lambda: asyncio.sleep(scene.chance.uniform(0.2, 1.5)))


async def _hold(scene: Scene, part: str) -> None:
    """Until everybody has what was written meanwhile: nobody may need *part* for that."""
    await _stopped(await scene.pid(part), lambda: _go_on_without(scene))


async def _lose(scene: Scene, part: str) -> None:
    """End it, and hold the process that takes its place before it serves."""
    await scene.end(part, signal.SIGKILL)
    await _stopped(await scene.pid(part), lambda: _go_on_without(scene))


async def _go_on_without(scene: Scene) -> None:
    await scene.written(scene.world.head + 10)
    await asyncio.gather(*(reader.reach(scene.world.head) for reader in scene.readers))


async def _stopped(pid: int, meanwhile: Callable[[], Awaitable[None]]) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
    try:
        await meanwhile()
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def _roll(scene: Scene, _: str) -> None:
    """Every service, one after the other, and then everything in front of them."""
    for part in (*SERVICES, *PROXIES):
        await scene.end(part, signal.SIGTERM)
        await scene.serves(part)


async def _slow(scene: Scene, _: str) -> None:
    """Half of the readers take one more message and then sleep, while more is written than waits in any buffer."""
    sleepers = scene.chance.sample(scene.readers, len(scene.readers) // 2)
    await asyncio.gather(*(reader.sleep() for reader in sleepers))
    goal = scene.world.bulk_written + _BULK_BYTES
    scene.world.bulk = _BULK
    try:
        while scene.world.bulk_written < goal:
            await scene.written(scene.world.head)
        scene.world.bulk = 0
        head = scene.world.head
        await asyncio.gather(*(reader.reach(head) for reader in scene.readers if reader not in sleepers))
        assert all(reader.revision < head for reader in sleepers), "nobody was behind"
    finally:
        scene.world.bulk = 0
        for reader in sleepers:
            reader.wake()


async def _cut(scene: Scene, _: str) -> None:
    """The log is cut under those who read, behind some that are away, and in front of others that are away."""
    behind, ahead = _two_groups(scene.chance.sample(scene.readers, 4))
    for reader in behind:
        await reader.reach(scene.world.head)
        await reader.leave()
    await scene.written(max(reader.revision for reader in behind) + 5)
    await scene.world.remember()
    horizon = len(scene.world.log) - scene.chance.randrange(5)
    for reader in ahead:
        await reader.reach(horizon)
        await reader.leave()
    await scene.world.cut(scene.running, horizon)
    for reader in (*behind, *ahead):
        reader.come_back()
    await asyncio.gather(*(reader.reach(horizon) for reader in scene.readers))
    assert all(reader.told_compacted for reader in behind)


async def _purge(scene: Scene, _: str) -> None:
    """What was written while some readers were away, and what others still hold, is purged before these come back."""
    away = scene.chance.sample(scene.readers, 4)
    for reader in away:
        await reader.leave()
    name = f"{scene.world.type_name(scene.chance.choice(TYPES))}/entities/p{scene.chance.randrange(2**32)}"
    await scene.world.create(scene.chance, name)
    await asyncio.gather(*(reader.reach(scene.world.head) for reader in scene.readers if reader not in away))
    await scene.world.purge(name)
    for reader in away:
        reader.come_back()
    await asyncio.gather(*(reader.reach(scene.world.head) for reader in away))


def _two_groups(readers: Sequence[Watcher]) -> tuple[Sequence[Watcher], Sequence[Watcher]]:
    return readers[::2], readers[1::2]


_STRIKES: dict[Kind, Callable[[Scene, str], Awaitable[None]]] = {
    "kill": _kill,
    "drain": _drain,
    "pause": _pause,
    "hold": _hold,
    "lose": _lose,
    "roll": _roll,
    "slow": _slow,
    "cut": _cut,
    "purge": _purge,
}
# What may strike beside any other: it asks nothing of the readers.
_BESIDE: frozenset[Kind] = frozenset({"kill", "drain", "pause"})


@dataclass(frozen=True)
class Fault:
    """What is done, and to which part (empty: not to one part)."""

    kind: Kind
    part: str = ""

    @property
    def restarts(self) -> int:
        """How many processes it ends."""
        return {"kill": 1, "drain": 1, "lose": 1, "roll": len(SERVICES) + len(PROXIES)}.get(self.kind, 0)

    async def strike(self, scene: Scene) -> None:
        """Do it."""
        await _STRIKES[self.kind](scene, self.part)

    def __str__(self) -> str:
        return f"{self.kind} {self.part}".strip()


FAULTS = (
    Fault("kill", "stream"),
    Fault("kill", "entity"),
    Fault("kill", "nats"),
    Fault("kill", "postgres"),
    Fault("kill", "stream-sidecar"),
    Fault("kill", "user"),
    Fault("kill", "edge"),
    Fault("drain", "stream"),
    Fault("drain", "entity"),
    Fault("drain", "postgres"),
    Fault("pause", "stream"),
    Fault("pause", "entity"),
    Fault("pause", "postgres"),
    Fault("pause", "nats"),
    Fault("hold", "nats"),
    Fault("lose", "nats"),
    Fault("roll"),
    Fault("slow"),
    Fault("cut"),
    Fault("purge"),
)


def any_rounds(chance: random.Random, number: int) -> list[tuple[Fault, ...]]:
    """So many rounds of different faults, most of them with another one beside."""
    return [_with_another(chance, fault) for fault in chance.sample(FAULTS, number)]


def _with_another(chance: random.Random, fault: Fault) -> tuple[Fault, ...]:
    others = [other for other in FAULTS if other.kind in _BESIDE and other.part != fault.part]
    if fault.kind == "cut":
        others = [other for other in others if other.part != "postgres"]  # which is what cuts
    return (fault, chance.choice(others)) if chance.random() < 0.7 else (fault,)


async def strike(scene: Scene, faults: Sequence[Fault]) -> None:
    """All at once, more or less: the first one comes first."""

    async def after(seconds: float, fault: Fault, chance: random.Random) -> None:
        await asyncio.sleep(seconds)
        # Its own choices: those of the others do not depend on who is quicker.
        await fault.strike(replace(scene, chance=chance))

    async with asyncio.TaskGroup() as striking:
        for number, fault in enumerate(faults):
            seconds = number * scene.chance.uniform(0, 0.5)
            striking.create_task(after(seconds, fault, random.Random(scene.chance.random())))
