"""Access tokens of the local administrator, for `strandline token` and the smoke check."""

from __future__ import annotations

import json
import time
from pathlib import Path

from strandline_cli.api import Api
from strandline_cli.credentials import ADMIN_EMAIL
from strandline_cli.home import Home, write_private

# A login is limited to 100 per 15 minutes and address, and a token lives for 10 minutes: one that still has 8 of them
# is handed out again, so that a script may call `strandline token` as often as it likes.
_REUSE_WITH_SECONDS_LEFT = 480


def administrator_token(home: Home, rest: str) -> str:
    """A token that is valid for at least 8 minutes; signs in when there is none.

    Raises:
        ApiError, OSError: the platform refused, or is not there.
    """
    cache = home.secrets / "admin" / "token.json"
    try:
        cached = json.loads(cache.read_bytes())
        if cached["rest"] == rest and cached["expires_at"] - time.time() >= _REUSE_WITH_SECONDS_LEFT:
            return str(cached["token"])
    except (OSError, ValueError, KeyError):
        pass  # none yet, or one of an older format
    return _sign_in(home, rest, cache)


def forget_token(home: Home) -> None:
    """Drop the kept token: the next one comes from a new sign-in."""
    (home.secrets / "admin" / "token.json").unlink(missing_ok=True)


def _sign_in(home: Home, rest: str, cache: Path) -> str:
    password = (home.secrets / "admin" / "password").read_text()
    answer = Api(rest).call("POST", "/v1/auth:login", {"email": ADMIN_EMAIL, "password": password})
    token = str(answer["accessToken"])
    expires_at = time.time() + float(answer["expiresIn"])
    write_private(cache, json.dumps({"rest": rest, "token": token, "expires_at": expires_at}).encode())
    return token
