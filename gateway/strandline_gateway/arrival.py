"""The first Lua filter: the scheme of a token, where a namespace lives, and bodies that are too large for REST."""

from __future__ import annotations

from strandline_gateway.building_blocks import ROUTING_HEADER, Json
from strandline_gateway.descriptor import Rpc
from strandline_gateway.topology import Edge
from strandline_gateway.transcoding import lua_filter, script, transcoded_rpcs

ARRIVAL = "strandline.arrival"
AUTH_PREFIX = "/v1/auth:"


def arrival_filter(door: Edge) -> Json:
    """Normalises the ``Bearer`` scheme, adds the routing header, and finds bodies that are too large for REST.

    REST gets the header from its path. What comes beyond a limit is dropped, for ``strict.lua`` to refuse. It never
    buffers. Native gRPC keeps the body limits of ``edge_filters``, which answer at once.
    """
    limits = ", ".join(f'["{rpc.name}"] = {body_limit_of(rpc, door)}' for rpc in transcoded_rpcs())
    tables = f'local ROUTING_HEADER = "{ROUTING_HEADER}"\nlocal LIMITS = {{ {limits} }}\n'
    return lua_filter(ARRIVAL, tables + script("arrival.lua"))


def body_limit_of(rpc: Rpc, door: Edge) -> int:
    """How many bytes a request of *rpc* may have."""
    return door.auth_body_limit if signs_in(rpc) else door.body_limit


def signs_in(rpc: Rpc) -> bool:
    """Whether *rpc* is one of those that strangers call: they are held to smaller bodies, and to a rate."""
    return rpc.http is not None and rpc.http.template.startswith(AUTH_PREFIX)
