"""The Python client of Strandline: feeds that resume and prove that they missed nothing, writes that apply once."""

from strandline_client.batching import BatchingWriter, Written
from strandline_client.cache import Cache, Replaced
from strandline_client.client import Client
from strandline_client.errors import ApiError, FeedEnded, FeedViolation
from strandline_client.position import Start
from strandline_client.units import Watch

__all__ = [
    "ApiError",
    "BatchingWriter",
    "Cache",
    "Client",
    "FeedEnded",
    "FeedViolation",
    "Replaced",
    "Start",
    "Watch",
    "Written",
]
