"""The stream service: live fan-out of what was committed, over gRPC, NDJSON, SSE and WebSocket.

Owns open feeds, and in a database of its own what is to outlive them: the positions of durable subscriptions. The truth
of a feed is the log of its owner (the user service for ``system``, the entity service for every other namespace), so
that losing this process loses nothing, and losing its database loses positions but no event.

Promises to every reader: ordered, unique, atomic, dense ranges that join up, ``Progress`` at least every 5 seconds, an
explicit refusal instead of a gap, and ``End`` whenever the service ends a feed. Calls ``LogService`` of both owners and
``AccessService`` of the user service; hears of commits on the bus, but never depends on it.
"""
