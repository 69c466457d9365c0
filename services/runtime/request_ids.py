"""What request ids were answered with: for 24 hours a repetition hears the same, and is not done again.

The table ``requests`` belongs to the log (``changelog.LOG_TABLES``), because an answer is committed with its unit. The
many units of one request, as a batch has them, are remembered in one row.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Final, NamedTuple

from services.runtime.database import (
    Database,
    Row,
    Statement,
    packed_bytea,
    packed_few,
    packed_int8,
    packed_text,
)

REQUEST_LIFE: Final = timedelta(hours=24)
"""How long a request id is known."""
# Numbers of units of one request that one row of answers may span.
MAX_SPAN = 4096

# Answered requests that one transaction removes.
FORGET_AT_ONCE = 5000


class Share(NamedTuple):
    """Which one a unit is of the many that were asked for by one *request*; *number* is not negative."""

    request: str
    number: int

    @property
    def request_id(self) -> str:
        """Like no id that a caller may choose, because of the dot."""
        return f"{self.request}.{self.number}"


class AnsweredRequest(NamedTuple):
    """What a request id was answered with; those of one request that have a *share* are kept together."""

    principal: str
    method: str
    request_id: str
    body_hash: bytes
    revision: int
    answer: bytes
    share: Share | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        return (self.principal, self.method, self.request_id)


# One share in a row of many: number, revision, length of the hash, of the answer; then both.
_SHARE = struct.Struct("!QQBI")


def kept_together(answers: Iterable[AnsweredRequest]) -> list[AnsweredRequest]:
    """*answers* as rows: those with shares of one request in one, whose id ends with the last number in it."""
    rows: list[AnsweredRequest] = []
    shares: dict[tuple[str, str, str, int], list[AnsweredRequest]] = {}
    for answer in answers:
        if answer.share is None:
            rows.append(answer)
        else:
            request, number = answer.share
            shares.setdefault((answer.principal, answer.method, request, number // MAX_SPAN), []).append(answer)
    for (principal, method, request, _), some in shares.items():
        packed = bytearray()
        last = 0
        for _, _, _, body_hash, revision, answer_, share in some:
            assert share is not None
            last = max(last, share.number)
            packed += _SHARE.pack(share.number, revision, len(body_hash), len(answer_)) + body_hash + answer_
        rows.append(AnsweredRequest(principal, method, _row_id(request, last), b"", some[-1].revision, bytes(packed)))
    return rows


def _row_id(request: str, last: int) -> str:
    """The id of a row of shares: by the hash sign it is told from any other; digits sort as numbers do."""
    return f"{request}#{last:012d}"


def answered_requests(rows: Iterable[Row]) -> Iterable[AnsweredRequest]:
    """The answers in the rows of ``find_requests``."""
    for row in rows:
        principal, method, request_id, _, _, content = row
        request, is_of_many, _ = request_id.partition("#")
        if not is_of_many:
            yield AnsweredRequest(*row)
            continue
        at = 0
        while at < len(content):
            number, revision, hash_length, length = _SHARE.unpack_from(content, at)
            at += _SHARE.size
            body_hash, answer = content[at : at + hash_length], content[at + hash_length : at + hash_length + length]
            at += hash_length + length
            share = Share(request, number)
            yield AnsweredRequest(principal, method, share.request_id, body_hash, revision, answer, share)


def ranges_of(request_ids: Iterable[str], shares: Iterable[Share]) -> set[tuple[str, str]]:
    """First and last id of the rows, in the order of ids, that hold *request_ids* and *shares*, and maybe others.

    A row of shares has its id from the last of them, so those with the wanted ones begin at the first wanted one, and
    end where no row can reach back to the last one.
    """
    ranges = {(request_id, request_id) for request_id in request_ids}
    numbers: dict[str, list[int]] = {}
    for request, number in shares:
        numbers.setdefault(request, []).append(number)
    ranges.update((_row_id(id_, min(some)), _row_id(id_, max(some) + MAX_SPAN)) for id_, some in numbers.items())
    return ranges


def find_requests(namespace: str, request_ids: Iterable[str], shares: Iterable[Share] = ()) -> Statement:
    """Rows for ``answered_requests`` of those already answered, and maybe of others.

    Written so that only the primary key can serve it, one range at a time (OFFSET 0 fences, and the age is no condition
    that the janitor's index understands): a plan made while the table was empty stays with its connection, and
    the other index would walk everything that was asked in 24 hours, for every batch.
    """
    ranges = ranges_of(request_ids, shares)
    return Statement(
        """SELECT r.* FROM unnest(%s::text[], %s::text[]) AS k (first, last)
        CROSS JOIN LATERAL (SELECT principal, method, request_id, body_hash, revision, answer FROM requests
            WHERE namespace = %s AND request_id >= k.first AND request_id <= k.last
                AND create_time + %s > now() OFFSET 0) r""",
        (packed_text(first for first, _ in ranges), packed_text(last for _, last in ranges), namespace, REQUEST_LIFE),
    )


def remember(namespace: str, answers: Sequence[AnsweredRequest]) -> Statement:
    """Keep *answers*; one that was given more than 24 hours ago makes room."""
    rows = kept_together(answers)
    return Statement(
        """INSERT INTO requests (namespace, principal, method, request_id, body_hash, revision, answer, create_time)
        SELECT %s, *, now()
        FROM unnest(%s::text[], %s::text[], %s::text[], %s::bytea[], %s::int8[], %s::bytea[])
        ON CONFLICT (namespace, request_id, principal, method) DO UPDATE SET body_hash = excluded.body_hash,
            revision = excluded.revision, answer = excluded.answer, create_time = excluded.create_time""",
        (
            namespace,
            packed_few(row.principal for row in rows),
            packed_few(row.method for row in rows),
            packed_text(row.request_id for row in rows),
            packed_bytea(row.body_hash for row in rows),
            packed_int8(row.revision for row in rows),
            packed_bytea(row.answer for row in rows),
        ),
    )


async def forget_requests(database: Database, namespace: str) -> None:
    """Remove what was answered more than 24 hours ago, in transactions of some milliseconds."""
    forgotten = FORGET_AT_ONCE
    while forgotten == FORGET_AT_ONCE:
        async with database.connection() as connection, connection.transaction():
            await connection.execute("SELECT set_config('app.namespace', %s, true)", (namespace,))
            cursor = await connection.execute(
                """DELETE FROM requests WHERE ctid = ANY (ARRAY(
                    SELECT ctid FROM requests WHERE namespace = %s AND create_time < now() - %s
                    ORDER BY create_time LIMIT %s))""",
                (namespace, REQUEST_LIFE, FORGET_AT_ONCE),
            )
            forgotten = cursor.rowcount
