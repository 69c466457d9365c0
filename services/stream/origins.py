"""Which page a browser's request comes from. Browsers say so, and a page cannot make them lie."""

from __future__ import annotations

from collections.abc import Mapping

from services.runtime.errors import PermissionDenied

_PORTS = {"http": ":80", "https": ":443"}


def check_origin(origin: str | None, host: str) -> None:
    """Refuse a page of another site: browsers let any page open a WebSocket, and send a form. None: no browser.

    Raises:
        PermissionDenied: ORIGIN_NOT_ALLOWED.
    """
    if origin is None:
        return
    scheme, _, authority = origin.lower().partition("://")
    # The scheme is the edge's affair. A port that a scheme implies may be left out.
    port = _PORTS.get(scheme, "")
    if not authority or host.lower().removesuffix(port) != authority.removesuffix(port):
        raise _refusal()


def check_own_page(headers: Mapping[str, str], host: str) -> None:
    """Refuse what a page of *host* has not provably sent; *headers* have lower-case names.

    A browser leaves ``Origin`` out where a page reads from its own origin; then ``Sec-Fetch-Site`` says that it does.

    Raises:
        PermissionDenied: ORIGIN_NOT_ALLOWED.
    """
    origin = headers.get("origin")
    if origin is None and headers.get("sec-fetch-site") != "same-origin":
        raise _refusal()
    check_origin(origin, host)


def _refusal() -> PermissionDenied:
    return PermissionDenied("ORIGIN_NOT_ALLOWED", "only a page of this origin may do this")
