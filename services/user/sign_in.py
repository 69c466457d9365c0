"""Signing in and out, and the exchange of refresh tokens."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine

from services.runtime.errors import ResourceExhausted, Unauthenticated
from services.user import store
from services.user.account_writes import EndSession
from services.user.addresses import AddressIndex
from services.user.ledger import SystemLog
from services.user.model import SERVICE_ACTOR, Account, EndReason
from services.user.passwords import Passwords
from services.user.sessions import ABSOLUTE_LIFE, ACCESS_LIFE, Outcome, Presented, RefreshTokens, present
from services.user.signing import TokenSigner


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a session lives on; ``expires_in`` is in seconds and about the access token."""

    access_token: str
    refresh_token: str
    expires_in: int = int(ACCESS_LIFE.total_seconds())


class SignIn:
    """Opens, continues and ends sessions."""

    def __init__(
        self,
        engine: AsyncEngine,
        addresses: AddressIndex,
        passwords: Passwords,
        refresh_tokens: RefreshTokens,
        signer: TokenSigner,
        system: SystemLog,
    ) -> None:
        self._engine = engine
        self._addresses = addresses
        self._passwords = passwords
        self._refresh_tokens = refresh_tokens
        self._signer = signer
        self._system = system

    async def login(self, email: str, password: str) -> Tokens:
        """Open a session.

        Raises:
            Unauthenticated: LOGIN_FAILED; unknown, unverified and wrong look the same and take the same time.
            ResourceExhausted: RATE_LIMITED, after five failures in a row, whether or not the address is known.
            Unavailable: OVERLOADED.
        """
        index = self._addresses.of_attempt(email)
        async with self._passwords.turn():
            account = await self._attempt(index)
            right = await self._passwords.verify(password, account.password_hash if account else None)
            # Only now is the password here to be hashed as strongly as new ones are.
            stronger = ""
            if account and right and self._passwords.is_outdated(account.password_hash):
                stronger = await self._passwords.hash(password)
        if account is None or not right:
            async with store.transaction(self._engine) as tx:
                await store.record(tx, "login_failed", account.user_id if account else "")
            raise Unauthenticated("LOGIN_FAILED", "the address or the password is wrong, or the address is unverified")
        session_id = str(uuid4())
        async with store.transaction(self._engine) as tx:
            await store.forget_attempts(tx, "login", index)
            if stronger:
                await store.replace_password_hash(tx, account, stronger)
            await store.insert_session(tx, session_id, account.user_id, ABSOLUTE_LIFE)
            await store.record(tx, "login", account.user_id, session_id)
        return self._tokens(account.user_id, session_id, 0, account.administrator)

    async def _attempt(self, index: bytes) -> Account | None:
        async with store.transaction(self._engine) as tx:
            blocked_for = await store.count_attempt(tx, "login", index)
            account = await store.find_account(tx, index)
        if blocked_for:
            seconds = str(math.ceil(blocked_for))
            raise ResourceExhausted("RATE_LIMITED", f"too many attempts; retry in {seconds} s", retry_after=seconds)
        return account

    async def refresh(self, refresh_token: str) -> Tokens:
        """Exchange the newest refresh token of a session for its successor.

        Raises:
            Unauthenticated: TOKEN_INVALID, or REFRESH_TOKEN_REUSED: the session has been ended, successors included.
        """
        presented = self._refresh_tokens.read(refresh_token)
        if presented is None:
            raise _invalid_token()
        outcome, tokens = await self._exchange(presented)
        if outcome is Outcome.REUSED:
            await self._end(presented.session_id, EndReason.REFRESH_REUSED, SERVICE_ACTOR)
            raise Unauthenticated("REFRESH_TOKEN_REUSED", "the refresh token was used before; sign in again")
        if tokens is None:
            raise _invalid_token()
        return tokens

    async def _exchange(self, presented: Presented) -> tuple[Outcome, Tokens | None]:
        async with store.transaction(self._engine) as tx:
            locked = await store.lock_session(tx, presented.session_id)
            if locked is None:
                return Outcome.ENDED, None
            session, administrator, now = locked
            outcome = present(session, presented.generation, now)
            generation = session.generation
            if outcome is Outcome.ROTATE:
                await store.rotate_session(tx, session, now)
                generation += 1
        if outcome not in (Outcome.ROTATE, Outcome.REPEAT):
            return outcome, None
        return outcome, self._tokens(session.user_id, session.id, generation, administrator)

    async def logout(self, refresh_token: str) -> None:
        """End the session of *refresh_token*, whichever of its tokens it is; one that is unknown is no error."""
        presented = self._refresh_tokens.read(refresh_token)
        if presented is None:
            return
        async with store.transaction(self._engine) as tx:
            locked = await store.lock_session(tx, presented.session_id)
        if locked is not None:
            await self._end(presented.session_id, EndReason.LOGOUT, locked[0].user_id)

    async def _end(self, session_id: str, reason: EndReason, actor: str) -> None:
        await self._system.commit(
            EndSession(actor=actor, method="EndSession", request_id="", session_id=session_id, reason=reason)
        )

    def _tokens(self, user_id: str, session_id: str, generation: int, administrator: bool) -> Tokens:
        return Tokens(
            self._signer.issue(user_id, session_id, ["admin"] if administrator else [], time.time()),
            self._refresh_tokens.issue(session_id, generation),
        )


def _invalid_token() -> Unauthenticated:
    return Unauthenticated("TOKEN_INVALID", "the refresh token is not valid")
