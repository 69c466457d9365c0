"""Channels to other services, through the caller's own sidecar."""

from __future__ import annotations

import grpc

# A batch of 3 MiB and its envelope fit.
MAX_MESSAGE_BYTES = 8 * 2**20
MESSAGE_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
)


def channel(address: str) -> grpc.aio.Channel:
    """A channel to *address* (``unix:/path`` or ``host:port``), plain: the sidecar does mTLS.

    A lost peer is looked for again within a second, so that a restart next door is not felt for longer.
    """
    return grpc.aio.insecure_channel(
        address,
        options=(
            *MESSAGE_OPTIONS,
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.use_local_subchannel_pool", 1),
        ),
    )
