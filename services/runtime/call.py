"""The context of one call, without any transport in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from services.runtime.errors import FailedPrecondition, invalid_field

_NAMESPACE_ID = re.compile(r"[a-z][a-z0-9-]{1,62}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls, as a verified access token says it.

    ``expires_at`` is in seconds since the epoch. Roles are not here: tokens say who, not what.
    """

    user_id: str
    session_id: str
    scopes: frozenset[str]
    expires_at: float

    @property
    def is_administrator(self) -> bool:
        return "admin" in self.scopes


@dataclass(frozen=True, slots=True)
class Quota:
    """What a namespace may hold and take; 0 is no limit."""

    max_entities: int = 0
    max_bytes: int = 0
    max_writes_per_second: int = 0


NO_QUOTA: Final = Quota()


@dataclass(frozen=True, slots=True)
class Namespace:
    """One life of a namespace, as the access rules know it."""

    id: str
    epoch: str
    mass_change_guard: bool = True
    quota: Quota = NO_QUOTA


@dataclass(slots=True)
class Call:
    """One call: its principal and metadata, and the headers of its answer.

    ``metadata`` has lower-case keys. ``namespace`` is set once the caller's role in it was checked. A handler whose
    caller's deadline has passed is cancelled, so it need not know of it.
    """

    metadata: Mapping[str, str]
    principal: Principal | None = None
    namespace: Namespace | None = None
    response_headers: dict[str, str] = field(default_factory=dict)

    @property
    def actor(self) -> str:
        """Who is written into the log."""
        if self.principal is None:
            raise AssertionError("only calls with a principal write")
        return self.principal.user_id

    def identified(self) -> Principal:
        """Who calls, on an RPC that asks for a proof of it."""
        if self.principal is None:
            raise AssertionError("the RPC declares no identity, so nobody was identified")
        return self.principal

    def allowed_namespace(self) -> Namespace:
        """The namespace whose role check this call has passed."""
        if self.namespace is None:
            raise AssertionError("the RPC declares no role, so no namespace was checked")
        return self.namespace

    def request_id(self, of_request: str) -> str:
        """The idempotency key: the request's field, else the header ``idempotency-key``; may be empty."""
        request_id = of_request or self.metadata.get("idempotency-key", "")
        if request_id and not _REQUEST_ID.fullmatch(request_id):
            raise invalid_field("request_id", "must be 1 to 64 characters of [A-Za-z0-9_-]")
        return request_id

    def expected_etag(self, *of_request: str) -> tuple[str, bool]:
        """The etag that a write demands, and whether it came by ``If-Match`` (then a mismatch is 412)."""
        explicit = next((etag for etag in of_request if etag), "")
        if not explicit and (header := self.metadata.get("if-match", "")) and header != "*":
            return header.removeprefix("W/"), True
        return explicit, False

    def position(self, revision: int, epoch: str) -> None:
        """Answer with ``Strandline-Revision``."""
        self.response_headers["strandline-revision"] = f"{epoch}.{revision}"

    def min_revision(self, of_request: int) -> MinRevision:
        """What the caller demands of a read, from the field or the header ``Strandline-Min-Revision``."""
        header = self.metadata.get("strandline-min-revision", "")
        if not header:
            return MinRevision(of_request) if of_request else ANY_REVISION
        epoch, dot, number = header.rpartition(".")
        if not (number.isascii() and number.isdigit() and len(number) < 19 and (epoch or not dot)):
            raise invalid_field("strandline-min-revision", "must be [<epoch>.]<revision>")
        return MinRevision(max(of_request, int(number)), epoch)


@dataclass(frozen=True, slots=True)
class MinRevision:
    """A position that an answer must not be older than; epoch empty: any."""

    revision: int
    epoch: str = ""

    def check(self, head_revision: int, epoch: str) -> None:
        """Refuse what does not exist: a revision of the future, or of another life of the log."""
        if self.epoch and self.epoch != epoch:
            raise FailedPrecondition("EPOCH_CHANGED", "the position is of another life of the namespace", epoch=epoch)
        if self.revision > head_revision:
            raise FailedPrecondition(
                "FUTURE_REVISION", "the revision does not exist yet", head_revision=str(head_revision)
            )


ANY_REVISION: Final = MinRevision(0)


def namespace_of(name: str, field_name: str) -> str:
    """The namespace id in a resource name ``namespaces/{namespace}[/...]``."""
    parts = name.split("/", 2)
    if len(parts) < 2 or parts[0] != "namespaces" or not _NAMESPACE_ID.fullmatch(parts[1]):
        raise invalid_field(field_name, "must begin with namespaces/{namespace}, an id like [a-z][a-z0-9-]{1,62}")
    return parts[1]
