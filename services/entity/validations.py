"""Checking the live entities of a type against a schema, as an operation.

The entities are read in the order of their ids, some hundred at a time; what is written meanwhile behind or before the
reader is seen or not. No lock is held but on the operation itself.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import orjson

from services.entity import schemas, type_store
from services.entity.long_running import StepDone
from services.entity.model import EntityKey, entity_name
from services.entity.operation_store import OperationKey
from services.entity.schemas import Validator
from services.runtime.database import Connection, pipeline
from services.runtime.wire import JsonObject

ENTITIES_AT_ONCE: Final = 500
MAX_SAMPLE: Final = 10


class EntityValidation:
    """The worker. ``progress``: ``after``, the last id that was seen; ``invalid``, how many; ``sample``, which ones."""

    async def take_step(
        self, connection: Connection, key: OperationKey, request: JsonObject, so_far: JsonObject
    ) -> StepDone:
        """See ``long_running.Worker``."""
        after, invalid, sample = so_far.get("after", ""), so_far.get("invalid", 0), so_far.get("sample", [])
        (rows,) = await pipeline(
            connection, type_store.select_live(key.namespace, request["type"], after, ENTITIES_AT_ONCE)
        )
        validator = _validator(orjson.dumps(request["schema"]))
        for _, entity_id, _, text in rows:
            data = orjson.loads(text)
            if validator.is_valid(data):
                continue
            invalid += 1
            if len(sample) < MAX_SAMPLE:
                first = schemas.violation_error(validator, data, "data").violations[0]
                name = entity_name(key.namespace, EntityKey(request["type"], entity_id))
                sample.append({"name": name, "pointer": first.pointer, "message": first.message})
        after = rows[-1][1] if rows else after
        done = not rows or len(rows) == rows[0][0] < ENTITIES_AT_ONCE
        return StepDone({"after": after, "invalid": invalid, "sample": sample}, len(rows), done)


# Compiling takes as long as checking hundreds of entities. Only a few are kept: of an operation that another process
# ends, nobody here hears.
@lru_cache(maxsize=16)
def _validator(schema: bytes) -> Validator:
    # The sample outlives the content that it is about, which may be purged meanwhile.
    return schemas.compile_schema(orjson.loads(schema), mask="the value")
