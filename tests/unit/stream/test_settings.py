"""What the stream service refuses at its start."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.stream.endpoints import Receiver
from services.stream.server import StreamSettings

ENVIRONMENT = {
    "STRANDLINE_LISTEN": "unix:/run/stream.sock",
    "STRANDLINE_HTTP_LISTEN": "unix:/run/stream-http.sock",
    "STRANDLINE_DATABASE_URL": "postgresql://stream",
    "STRANDLINE_SECRETS_DIR": "/secrets",
    "STRANDLINE_USER_ADDRESS": "unix:/run/user.sock",
    "STRANDLINE_ENTITY_ADDRESS": "unix:/run/entity.sock",
}


def test_the_bound_of_feeds_for_each_user_can_be_set_and_is_generous_otherwise() -> None:
    assert StreamSettings.from_env(ENVIRONMENT).max_feeds_per_user == 15_000
    assert StreamSettings.from_env(ENVIRONMENT | {"STRANDLINE_MAX_FEEDS_PER_USER": "7"}).max_feeds_per_user == 7


def test_no_receiver_on_loopback_is_open_unless_the_topology_says_so() -> None:
    assert StreamSettings.from_env(ENVIRONMENT).webhook_receivers == ()
    assert StreamSettings.from_env(ENVIRONMENT | {"STRANDLINE_TOPOLOGY": "local"}).webhook_receivers == ()


def test_the_local_topology_may_open_receivers(authority: Path) -> None:
    opened = {"STRANDLINE_TOPOLOGY": "local", "STRANDLINE_WEBHOOK_RECEIVERS": f"127.0.0.1:9443={authority}"}
    settings = StreamSettings.from_env(ENVIRONMENT | opened)
    assert settings.webhook_receivers == (Receiver("127.0.0.1", 9443, authority),)


@pytest.mark.parametrize("topology", [{}, {"STRANDLINE_TOPOLOGY": "kubernetes"}, {"STRANDLINE_TOPOLOGY": ""}])
def test_any_other_topology_with_an_open_receiver_does_not_start(topology: dict[str, str], authority: Path) -> None:
    opened = {"STRANDLINE_WEBHOOK_RECEIVERS": f"127.0.0.1:9443={authority}"}
    with pytest.raises(RuntimeError, match="only in the local topology"):
        StreamSettings.from_env(ENVIRONMENT | topology | opened)
