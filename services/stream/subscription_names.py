"""Names of subscriptions in requests, and traces of who managed them."""

from __future__ import annotations

import logging
import re
from typing import Final

from services.runtime.call import Call, Namespace
from services.runtime.errors import invalid_field

logger = logging.getLogger(__name__)

_NAME: Final = re.compile(r"namespaces/([a-z][a-z0-9-]{1,62})/subscriptions/([a-z][a-z0-9-]{0,62})")


def name_of(namespace: Namespace, id: str) -> str:
    """The name of the subscription called *id*."""
    return f"namespaces/{namespace.id}/subscriptions/{id}"


def named(name: str, call: Call, field: str = "name") -> tuple[Namespace, str]:
    """The namespace and the id of the subscription called *name*.

    Raises:
        InvalidArgument: INVALID_FIELD, about *field*.
    """
    namespace = call.allowed_namespace()
    if (match := _NAME.fullmatch(name)) is None or match[1] != namespace.id:
        raise invalid_field(field, "must be namespaces/{namespace}/subscriptions/{subscription}")
    return namespace, match[2]


def note(call: Call, done: str, name: str) -> None:
    """Leave a trace of who managed what."""
    logger.info("%s %s %s", call.actor, done, name)
