"""Access tokens: Ed25519-signed JWTs of type ``at+jwt`` (RFC 9068) that say who, never what they may do.

The edge has verified a token before; a service verifies it again, because one bypass of the edge would otherwise be
total, and because Envoy checks neither ``typ`` nor ``crit``. Outcomes are remembered until the token expires: a
verification costs about 200 us.
"""

from __future__ import annotations

import re
import time
import warnings
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping

from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import OKPKey

from services.runtime import wire
from services.runtime.call import Principal
from services.runtime.errors import InvalidArgument, Unauthenticated

AUDIENCE = "strandline"
TOKEN_TYPE = "at+jwt"
MAX_LIFETIME = 15 * 60
LEEWAY = 5
# How long the tokens of the user service live; and how long it is remembered that a session was ended: longer than any
# proof of it counts, a minute of it for clocks that disagree and for the news to arrive.
ACCESS_SECONDS = 10 * 60
REVOCATION_SECONDS = ACCESS_SECONDS + 60
MAX_TOKEN_BYTES = 4096
_REMEMBERED = 10_000
_SUBJECT = re.compile(r"[A-Za-z0-9:_-]{1,64}")
# RFC 9864 renames the algorithm to "Ed25519"; Envoy, like most verifiers, knows it only by its older name.
warnings.filterwarnings("ignore", "EdDSA is deprecated", SecurityWarning)
_REGISTRY = jws.JWSRegistry(algorithms=["EdDSA"])


class KeySet:
    """Public keys by ``kid``."""

    def __init__(self, keys: Mapping[str, OKPKey]) -> None:
        self._keys = dict(keys)

    @classmethod
    def from_jwks(cls, keys: Iterable[Mapping[str, str]]) -> KeySet:
        """The Ed25519 keys of a JWK set."""
        return cls(
            {
                key["kid"]: OKPKey.import_key({"kty": "OKP", "crv": "Ed25519", "x": key["x"]})
                for key in keys
                if key.get("crv") == "Ed25519"
            }
        )

    def get(self, kid: object) -> OKPKey | None:
        return self._keys.get(kid) if isinstance(kid, str) else None


class TokenVerifier:
    """Turns a bearer token into a principal, or refuses it with TOKEN_INVALID whatever the cause."""

    def __init__(self, issuer: str, keys: Callable[[bool], Awaitable[KeySet]]) -> None:
        """*keys* returns the current key set; its argument asks to look for new ones (an unknown ``kid`` was seen)."""
        self._issuer = issuer
        self._keys = keys
        self._known: OrderedDict[str, Principal] = OrderedDict()

    def recall(self, token: str) -> Principal | None:
        """Who *token* speaks for, if it was verified before.

        Raises:
            Unauthenticated: TOKEN_INVALID, it has expired.
        """
        principal = self._known.get(token)
        if principal is not None and principal.expires_at + LEEWAY < time.time():
            del self._known[token]
            raise _invalid()
        return principal

    async def verify(self, token: str) -> Principal:
        """Who *token* speaks for.

        Raises:
            Unauthenticated: TOKEN_INVALID.
        """
        if (known := self.recall(token)) is not None:
            return known
        principal = await self._verify(token)
        self._known[token] = principal
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        return principal

    async def _verify(self, token: str) -> Principal:
        if len(token) > MAX_TOKEN_BYTES:
            raise _invalid()
        try:
            unverified = jws.extract_compact(token.encode("ascii"))
            header = unverified.headers()
            if header.get("alg") != "EdDSA" or header.get("typ") != TOKEN_TYPE or "crit" in header or "b64" in header:
                raise _invalid()
            key = (await self._keys(False)).get(header.get("kid")) or (await self._keys(True)).get(header.get("kid"))
            if key is None:
                raise _invalid()
            payload = jws.deserialize_compact(token, key, registry=_REGISTRY).payload
            claims = wire.parse_json(payload)
        except (JoseError, ValueError) as failure:
            raise _invalid() from failure
        except InvalidArgument:  # the claims are no JSON object
            raise _invalid() from None
        return self._principal(claims)

    def _principal(self, claims: wire.JsonObject) -> Principal:
        now = time.time()
        issued, begins, expires = (_seconds(claims.get(name)) for name in ("iat", "nbf", "exp"))
        subject, session, scope = claims.get("sub"), claims.get("sid"), claims.get("scope", "")
        if not (
            begins - LEEWAY <= now <= expires + LEEWAY
            and expires - issued <= MAX_LIFETIME
            and claims.get("iss") == self._issuer
            and claims.get("aud") == AUDIENCE
            and isinstance(subject, str)
            and _SUBJECT.fullmatch(subject)
            and isinstance(session, str)
            and _SUBJECT.fullmatch(session)
            and isinstance(scope, str)
        ):
            raise _invalid()
        return Principal(subject, session, frozenset(scope.split()), expires)


def _seconds(value: object) -> float:
    """A NumericDate; what is none is refused."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _invalid()
    return float(value)


def _invalid() -> Unauthenticated:
    return Unauthenticated("TOKEN_INVALID", "the access token is not valid")
