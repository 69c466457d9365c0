"""What a webhook's receiver gets: an id, and a body that is the same in each attempt.

The body of a change is the message that a feed would carry it in, alone in its unit, with what Standard Webhooks
recommends (``type``, ``timestamp``) and the subscription beside it. Its range is that of the unit.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import orjson
from strandline.stream.v1 import feed_pb2

from services.stream.render import render_json

TEST_TYPE: Final = "webhook.test"


@dataclass(frozen=True, slots=True)
class WebhookMessage:
    """One message; ``revision`` is 0 for a test, ``index`` is the change's place in its unit."""

    id: str
    revision: int
    index: int
    body: bytes


def message_id(uid: str, epoch: str, revision: int, index: int) -> str:
    """The id of a change for the subscription *uid*: the same in each attempt, and when it is replayed."""
    # No dot in it, which is what separates the parts of what is signed.
    return "msg_" + hashlib.sha256(f"{uid}/{epoch}/{revision}/{index}".encode()).hexdigest()[:32]


def change_message(name: str, uid: str, epoch: str, unit: feed_pb2.Unit, index: int) -> WebhookMessage:
    """The message of a change: *unit* holds it alone, *index* is its place in the unit as it was committed.

    *name* and *uid* are the subscription's.
    """
    revision = unit.revision
    feed = feed_pb2.WatchResponse(
        after_revision=revision - 1, revision=revision, epoch=epoch, units=feed_pb2.Units(units=[unit])
    )
    content = orjson.loads(render_json(feed))
    (change,) = content["units"]["units"][0]["changes"]
    head = {
        "type": f"change.{change['kind'].lower()}",
        "timestamp": content["units"]["units"][0]["commitTime"],
        "subscription": name,
        "index": index,
    }
    return WebhookMessage(message_id(uid, epoch, revision, index), revision, index, orjson.dumps(head | content))


def trial_message(name: str, id: str, now: datetime) -> WebhookMessage:
    """A message that says only that it is a test; *id* is its own."""
    head = {"type": TEST_TYPE, "timestamp": now.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
    return WebhookMessage(f"msg_{id}", 0, 0, orjson.dumps({**head, "subscription": name}))
