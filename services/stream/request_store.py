"""The SQL of request ids: which subscription a request has made or changed, for 24 hours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from services.runtime.call import Namespace
from services.runtime.database import Row, Statement
from services.runtime.errors import refusal_of
from services.runtime.request_ids import REQUEST_LIFE

REQUESTS_JOB: Final = ""
"""The id under which upkeep finds a namespace with requests to forget. It stands in the table of the subscriptions
that are due, so that one look finds both; empty, because no subscription can have such an id."""


@dataclass(frozen=True, slots=True)
class RequestId:
    """What somebody called a request. *body_hash* tells apart requests that were called the same."""

    principal: str
    method: str
    id: str
    body_hash: bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """The subscription that a request was about, and the webhook's secret, sealed, if it made one."""

    uid: str
    secret: bytes | None


def find(namespace: Namespace, request: RequestId) -> Statement:
    """A row for ``found`` if the request was answered."""
    return Statement(
        """SELECT body_hash, uid, secret FROM subscription_requests
        WHERE namespace = %s AND epoch = %s AND request_id = %s AND principal = %s AND method = %s
            AND create_time + %s > now()""",
        (namespace.id, namespace.epoch, request.id, request.principal, request.method, REQUEST_LIFE),
    )


def found(rows: Sequence[Row], request: RequestId) -> Answered | None:
    """What the rows of ``find`` tell.

    Raises:
        InvalidArgument: REQUEST_ID_REUSED, for another body.
    """
    if not rows:
        return None
    ((body_hash, uid, secret),) = rows
    if body_hash != request.body_hash:
        message = "the request id was used with another body"
        raise refusal_of("request_id", "REQUEST_ID_REUSED", message, field="request_id")
    return Answered(str(uid), secret)


def remember(
    namespace: Namespace, subscription: str, uid: str, request: RequestId, secret: bytes | None
) -> list[Statement]:
    """Remember that *request* was answered, if there is the *subscription* called *uid*."""
    return [
        Statement(
            """INSERT INTO subscription_requests
                (namespace, epoch, request_id, principal, method, body_hash, uid, secret, create_time)
            SELECT namespace, %s, %s, %s, %s, %s, uid, %s, now() FROM subscriptions
            WHERE namespace = %s AND id = %s AND uid = %s::uuid
            ON CONFLICT (namespace, epoch, request_id, principal, method) DO UPDATE SET
                body_hash = excluded.body_hash, uid = excluded.uid, secret = excluded.secret,
                create_time = excluded.create_time
            WHERE subscription_requests.create_time + %s <= now()""",
            (
                namespace.epoch,
                request.id,
                request.principal,
                request.method,
                request.body_hash,
                secret,
                namespace.id,
                subscription,
                uid,
                REQUEST_LIFE,
            ),
        ),
        Statement(
            """INSERT INTO subscription_upkeep (namespace, id, due_time) VALUES (%s, %s, now() + %s)
            ON CONFLICT DO NOTHING""",
            (namespace.id, REQUESTS_JOB, REQUEST_LIFE),
        ),
    ]


def forget(namespace: str) -> Statement:
    """Forget what was answered more than 24 hours ago. Walks what there is of *namespace*: for upkeep."""
    return Statement(
        "DELETE FROM subscription_requests WHERE namespace = %s AND create_time + %s <= now()",
        (namespace, REQUEST_LIFE),
    )


def forget_upkeep(namespace: str) -> Statement:
    """Look after the requests of *namespace* no more, unless some are left."""
    return Statement(
        """DELETE FROM subscription_upkeep WHERE namespace = %s AND id = %s
            AND NOT EXISTS (SELECT FROM subscription_requests WHERE namespace = %s)""",
        (namespace, REQUESTS_JOB, namespace),
    )
