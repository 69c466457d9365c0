"""What this service asks of others; the only file that uses another service's stubs."""

from __future__ import annotations

import grpc
from strandline.entity.v1 import entity_service_pb2 as pb
from strandline.entity.v1 import entity_service_pb2_grpc

# A step is bounded to about a second by its owner.
_STEP_SECONDS = 10.0


class PurgeError(Exception):
    """The entity service could not do a step; try again."""


class EntityData:
    """The entities of namespaces."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._entities = entity_service_pb2_grpc.EntityServiceStub(channel)

    async def purge(self, namespace_id: str, epoch: str) -> bool:
        """Remove a part of what one life of a namespace holds; whether nothing is left.

        Raises:
            PurgeError: nothing is known of the step.
        """
        request = pb.PurgeNamespaceRequest(namespace_id=namespace_id, epoch=epoch)
        try:
            answer = await self._entities.PurgeNamespace(request, timeout=_STEP_SECONDS)
        except grpc.aio.AioRpcError as failure:
            raise PurgeError(failure.code().name) from failure
        return bool(answer.done)
