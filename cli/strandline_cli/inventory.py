"""All parts of one layout."""

from __future__ import annotations

from dataclasses import dataclass

from strandline_cli import envoys, mail, nats, services
from strandline_cli.parts import Layout, Part, ProcessPart
from strandline_cli.postgres import Postgres


@dataclass(frozen=True)
class Inventory:
    """The parts by their place in the platform. The mail sink has no process: it runs in the supervisor."""

    database: Postgres
    postgres: ProcessPart
    nats: ProcessPart
    mail: Part
    services: tuple[ProcessPart, ...]
    sidecars: tuple[ProcessPart, ...]
    edge: ProcessPart

    @classmethod
    def of(cls, layout: Layout) -> Inventory:
        """The parts, none of them started."""
        database = Postgres(layout)
        return cls(
            database,
            database.part(),
            nats.part(layout),
            mail.part(layout),
            services.parts(layout),
            envoys.sidecars(layout),
            envoys.edge(layout),
        )

    @property
    def processes(self) -> tuple[ProcessPart, ...]:
        """Those with a process of their own."""
        return (self.postgres, self.nats, *self.services, *self.sidecars, self.edge)

    @property
    def all(self) -> tuple[Part, ...]:
        """Every part, each after those that it depends on."""
        return (self.postgres, self.nats, self.mail, *self.services, *self.sidecars, self.edge)
