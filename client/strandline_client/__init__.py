"""The Python client of Strandline: feeds that resume and prove that they missed nothing, writes that apply once."""

from strandline_client.client import Client
from strandline_client.errors import ApiError, FeedEnded, FeedViolation
from strandline_client.position import Start

__all__ = ["ApiError", "Client", "FeedEnded", "FeedViolation", "Start"]
