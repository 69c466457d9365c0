"""Types that change while entities of them are written: new versions, and a type that comes and goes."""

from __future__ import annotations

import asyncio
import itertools
import random

from strandline.entity.v1 import entity_pb2, type_service_pb2, type_service_pb2_grpc
from strandline_client.retry import new_request_id

from .oracle import FLEETING, TYPES, World, schema

_BETWEEN_SECONDS = 0.5


class Types:
    """The owner of a world's types."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._types: type_service_pb2_grpc.TypeServiceAsyncStub = type_service_pb2_grpc.TypeServiceStub(world.channel)

    async def change(self, chance: random.Random, steps: int, enough: asyncio.Event) -> None:
        """So many steps, and on until it is *enough*, one after the other."""
        for number in itertools.count():
            if number >= steps:
                if enough.is_set():
                    return
                await asyncio.sleep(_BETWEEN_SECONDS)
            if number % 2:
                await self._come_and_go(chance)
            else:
                await self._add_a_property(chance.choice(TYPES))

    async def _add_a_property(self, type_id: str) -> None:
        """Whoever writes from now on may use it."""
        old = self._world.schemas[type_id]
        properties = old["properties"] | {f"y{len(old['properties'])}": {"type": "integer"}}
        type_ = entity_pb2.EntityType(name=self._world.type_name(type_id))
        type_.schema.update(old | {"properties": properties})
        request = type_service_pb2.UpdateTypeRequest(type=type_, update_mask=["schema"], request_id=new_request_id())
        answer = await self._world.ask(self._types.UpdateType, request)
        self._learn(answer.revision, type_id, old | {"properties": properties})

    async def _come_and_go(self, chance: random.Random) -> None:
        """A type is made, lived in, and removed: of that nothing is left but the log."""
        world, name = self._world, self._world.type_name(FLEETING)
        declared = schema(chance)
        type_ = entity_pb2.EntityType()
        type_.schema.update(declared)
        created = type_service_pb2.CreateTypeRequest(
            parent=f"namespaces/{world.namespace}", type_id=FLEETING, type=type_, request_id=new_request_id()
        )
        answer = await world.ask(self._types.CreateType, created)
        self._learn(answer.revision, FLEETING, declared)
        entity = f"{name}/entities/e{chance.randrange(3)}"
        await world.create(chance, entity)
        await (world.purge(entity) if chance.random() < 0.5 else world.delete(entity))
        removed = type_service_pb2.DeleteTypeRequest(name=name, request_id=new_request_id())
        self._learn((await world.ask(self._types.DeleteType, removed)).revision, FLEETING, None)

    def _learn(self, revision: int, type_id: str, declared: dict[str, object] | None) -> None:
        self._world.learn_type(revision, type_id, declared)
