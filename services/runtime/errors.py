"""Everything that can go wrong, as the caller will see it.

::

    Error                    reason, message, metadata, violations
    ├── InvalidArgument      the request can never work
    ├── FailedPrecondition   it could work in another state of the system
    ├── OutOfRange           the position was cut from the log (etcd's choice for a compacted revision)
    ├── Unauthenticated      no proof of who calls
    ├── PermissionDenied     the caller is known and may not
    ├── NotFound             no such thing, or a stranger asks
    ├── AlreadyExists        the name or a unique value is taken
    ├── Aborted              a lost race: read again and retry
    ├── ResourceExhausted    a limit of the caller's
    └── Unavailable          retry the same request

Reasons are stable and listed in the contract. Anything that is not an ``Error`` leaves the process as INTERNAL, without
its text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing that is wrong with one field.

    *field* is a path in the request (``entity.data``); *pointer* is an RFC 6901 pointer into the content, when the
    violation is about a value inside it.
    """

    field: str
    message: str
    pointer: str = ""


class Error(Exception):
    """A failure with a stable *reason*, a *message* for people, and *metadata* for programs."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        http_status: int | None = None,
        **metadata: str,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = metadata
        self.violations = tuple(violations)
        self.http_status = http_status  # only where HTTP has a more exact status than the code's usual one


class InvalidArgument(Error):
    """The request can never work."""


class FailedPrecondition(Error):
    """The request could work in another state of the system."""


class OutOfRange(Error):
    """The position asked for is gone."""


class Unauthenticated(Error):
    """Nothing proves who calls."""


class PermissionDenied(Error):
    """The caller is known and may not."""


class NotFound(Error):
    """There is no such thing, or the caller is a stranger to it."""


class AlreadyExists(Error):
    """The name or a unique value is taken."""


class Aborted(Error):
    """A race was lost: read again and retry."""


class ResourceExhausted(Error):
    """A limit of the caller's is reached."""


class Unavailable(Error):
    """The same request may work in a moment."""


def invalid_field(field: str, message: str, pointer: str = "", *, reason: str = "INVALID_FIELD") -> InvalidArgument:
    """The commonest refusal: one field is wrong."""
    return InvalidArgument(reason, f"{field}: {message}", violations=[Violation(field, message, pointer)])


def refusal_of(field: str, reason: str, message: str, /, **metadata: str) -> InvalidArgument:
    """A refusal with a *reason* of its own; without a violation if *field* is empty."""
    violations = [Violation(field, message)] if field else ()
    return InvalidArgument(reason, message, violations=violations, http_status=None, **metadata)


def within(field: str, refusal: InvalidArgument) -> InvalidArgument:
    """*refusal* of what is inside the message *field*."""
    inside = [replace(violation, field=f"{field}.{violation.field}") for violation in refusal.violations]
    return InvalidArgument(refusal.reason, f"{field}.{refusal.message}", violations=inside)


def pointer_of(path: Iterable[str | int]) -> str:
    """RFC 6901."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in path)
