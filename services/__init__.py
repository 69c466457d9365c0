"""The services."""

import os
from typing import Final

# gRPC's older I/O: the thread that asyncio waits for reads the sockets itself. The event engine hands each read from
# thread to thread, which costs a fifth of a call. Here, because gRPC reads it while it is imported.
OLDER_IO: Final = "-event_engine_client,-event_engine_listener"
os.environ.setdefault("GRPC_EXPERIMENTS", OLDER_IO)
