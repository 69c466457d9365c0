"""`strandline status`: every part, asked itself; nothing is taken from memory but where to ask."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import Any

from strandline_cli.home import Home
from strandline_cli.inventory import Inventory
from strandline_cli.parts import Layout, Part
from strandline_cli.ports import DEFAULTS


@dataclass(frozen=True)
class PartStatus:
    """One part. ``state``: ``ready`` (it answered), ``starting`` (not yet, or not again yet) or ``stopped``."""

    name: str
    state: str
    pid: int | None
    address: str


@dataclass(frozen=True)
class Status:
    """The platform of one home; addresses of the last run when it is stopped."""

    rest: str
    grpc: str
    parts: list[PartStatus]

    @property
    def is_ready(self) -> bool:
        return all(part.state == "ready" for part in self.parts)

    def as_json(self) -> dict[str, Any]:
        """The form that the contract fixes."""
        return asdict(self)


def status(home: Home) -> Status:
    """Ask every part whether it serves; takes 2 s when one accepts connections and does not answer."""
    state = home.load_state()
    layout = Layout(home, home.run, DEFAULTS) if state is None else Layout(home, state.path, state.ports)
    supervisor = home.holder()
    pids: dict[str, int | None] = {}
    if supervisor is not None and state is not None:
        pids = {**state.pids, "mail": supervisor}
    return Status(layout.rest, layout.grpc, asyncio.run(_ask(Inventory.of(layout).all, pids)))


async def _ask(parts: tuple[Part, ...], pids: dict[str, int | None]) -> list[PartStatus]:
    async def ask(part: Part) -> PartStatus:
        if not pids:
            return PartStatus(part.name, "stopped", None, part.address)
        return PartStatus(part.name, "ready" if await part.ready() else "starting", pids.get(part.name), part.address)

    return list(await asyncio.gather(*(ask(part) for part in parts)))
