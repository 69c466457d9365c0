"""Which addresses users may name, so that nothing that is sent there reaches what only this platform may reach.

- A URL is ``https``, with a DNS name in ASCII and port 443 or 8443; no user, no fragment, no address in any spelling.
- An address that a name leads to is one of the public internet, and not a wrapping of another one.

A topology may open single *receivers* on loopback, for tests: ``host:port`` and the authority of their certificate.
They and nothing else may be on loopback.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Final, TypeAlias

from services.runtime.errors import invalid_field

Address: TypeAlias = IPv4Address | IPv6Address

MAX_URL: Final = 2048
PORTS: Final = frozenset({443, 8443})

_URL = re.compile(
    r"https://(?P<host>\[[^\]/?#]*\]|[^:/?#\[\]]+)(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<path>/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*)?"
    r"(?P<query>\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*)?"
)
_PORT = re.compile(r"[0-9]{1,5}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# A last label of digits, or 0x and digits, makes the whole name an address to some parser.
_TOP_LABEL = re.compile(r"[a-z][a-z0-9-]*")
# Names that mean this machine or this network by definition (RFC 6761, 6762, 8375, 9476 and ICANN's `internal`).
_LOCAL_SUFFIXES = frozenset({"localhost", "localdomain", "local", "internal", "arpa", "onion", "alt"})

_REFUSED_V4: tuple[IPv4Network, ...] = tuple(
    IPv4Network(block)
    for block in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; some clouds' metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # one cloud's platform address, though it looks public
        "169.254.0.0/16",  # link-local, metadata
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",  # multicast, reserved, broadcast
    )
)
# Only here are IPv6 addresses of the public internet: everything mapped, translated (64:ff9b::/96), unique local,
# link-local, site-local or multicast lies outside.
_PUBLIC_V6 = IPv6Network("2000::/3")
_REFUSED_V6: tuple[IPv6Network, ...] = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarking
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3ffe::/16",
        "3fff::/20",
    )
)


def is_public(address: Address) -> bool:
    """Whether *address* is one of the public internet, and not a wrapping of another one."""
    if isinstance(address, IPv4Address):
        return not any(address in block for block in _REFUSED_V4)
    return address.scope_id is None and address in _PUBLIC_V6 and not any(address in block for block in _REFUSED_V6)


def is_loopback(address: Address) -> bool:
    """Whether *address* is one of this machine."""
    return address.is_loopback


@dataclass(frozen=True, slots=True)
class Receiver:
    """One address on loopback that the topology opens, and the file with the authority of its certificate."""

    host: str
    port: int
    authority: Path


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A URL that may be asked; its host is in lower case."""

    url: str
    host: str
    port: int


def parse_receivers(text: str) -> tuple[Receiver, ...]:
    """Receivers from ``host:port=/path/of/ca.pem``, separated by commas; empty: none.

    Raises:
        RuntimeError: one is malformed, not on loopback, or its file is missing or holds no certificate.
    """
    receivers = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        address, _, authority = item.partition("=")
        host, _, port = address.rpartition(":")
        if not (host and authority):
            raise RuntimeError(f"a webhook receiver is <host>:<port>=<file of its authority>, not {item!r}")
        if not (_PORT.fullmatch(port) and 0 < int(port) < 65536):
            raise RuntimeError(f"the port of a webhook receiver is 1 to 65535, not {port!r}")
        literal = _literal(host)
        if literal is not None and not literal.is_loopback:
            raise RuntimeError(f"a webhook receiver must be on loopback, and {host} is not")
        if not Path(authority).is_file():
            raise RuntimeError(f"the authority of the webhook receiver {address} is missing: {authority}")
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(authority)
        except ssl.SSLError as failure:
            message = f"the authority of the webhook receiver {address} is no certificate in PEM: {authority}"
            raise RuntimeError(message) from failure
        receivers.append(Receiver(host.lower(), int(port), Path(authority)))
    return tuple(receivers)


def parse_endpoint(url: str, receivers: Sequence[Receiver] = (), field: str = "endpoint") -> Endpoint:
    """The endpoint that *url* names.

    Raises:
        InvalidArgument: INVALID_FIELD, not a URL that may be asked.
    """
    if len(url) > MAX_URL:
        raise invalid_field(field, f"must have at most {MAX_URL} characters")
    # Checked and used in one spelling: a letter that becomes an ASCII one in lower case may be another name elsewhere.
    match = _URL.fullmatch(url) if url.isascii() else None
    if match is None:
        raise invalid_field(field, "must be https://<name>[:443|:8443][/path][?query], all of it in ASCII")
    host, port = match["host"].lower(), int(match["port"] or 443)
    endpoint = Endpoint(url, host, port)
    if any((receiver.host, receiver.port) == (host, port) for receiver in receivers):
        return endpoint
    labels = host.split(".")
    if host.startswith("[") or not _TOP_LABEL.fullmatch(labels[-1]):
        raise invalid_field(field, "must have a DNS name, not an address; a name does not end with a dot")
    if len(host) > 253 or len(labels) < 2 or not all(map(_LABEL.fullmatch, labels)):
        raise invalid_field(field, "must have a full DNS name; one with other letters is written xn--...")
    if labels[-1] in _LOCAL_SUFFIXES:
        raise invalid_field(field, "must have a name of the public internet")
    if port not in PORTS:
        raise invalid_field(field, "must have port 443 or 8443")
    return endpoint


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
