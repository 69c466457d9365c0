"""The stream service: live fan-out of what was committed, over gRPC, NDJSON, SSE and WebSocket.

Owns nothing but open feeds: the truth of a feed is the log of its owner (the user service for ``system``, the entity
service for every other namespace), so that losing this process loses nothing.

Promises to every reader: ordered, unique, atomic, dense ranges that join up, ``Progress`` at least every 5 seconds, an
explicit refusal instead of a gap, and ``End`` whenever the service ends a feed. Calls ``LogService`` of both owners and
``AccessService`` of the user service; hears of commits on the bus, but never depends on it.
"""
