"""How somebody becomes a user, and what is kept of them."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.runtime.errors import InvalidArgument, NotFound
from services.user import store
from services.user.account_writes import VerifyUser, invalid_token
from services.user.addresses import Address, AddressIndex, parse_address
from services.user.envelope import Keyring, WrappedKey
from services.user.ledger import SystemLog
from services.user.mail import Mailer, known_address_mail, verification_mail
from services.user.model import SERVICE_ACTOR, SealedUser
from services.user.passwords import Passwords, check_password

_TOKEN_PREFIX = "slv_"


@dataclass(frozen=True, slots=True)
class Person:
    """A user in the clear: for that person's eyes only."""

    user_id: str
    email: str
    given_name: str
    family_name: str
    create_time: datetime


class Registration:
    """Registers and verifies users."""

    def __init__(
        self,
        engine: AsyncEngine,
        keyring: Keyring,
        addresses: AddressIndex,
        passwords: Passwords,
        system: SystemLog,
        mailer: Mailer,
    ) -> None:
        self._engine = engine
        self._keyring = keyring
        self._addresses = addresses
        self._passwords = passwords
        self._system = system
        self._mailer = mailer

    async def register(self, email: str, password: str, given_name: str, family_name: str) -> None:
        """Keep a registration and mail its token; if the address has an account, mail that to its owner instead.

        Both take the same time (the password is hashed either way), and after five mails to one address there is a
        growing pause without any; nothing of this shows in the answer.

        Raises:
            InvalidArgument: INVALID_FIELD, the address or the password.
            Unavailable: OVERLOADED.
        """
        address = parse_address(email)
        check_password(password, address)
        async with self._passwords.turn():
            password_hash = await self._passwords.hash(password)
        token = _TOKEN_PREFIX + secrets.token_urlsafe(32)
        user = self._sealed(address, password_hash, given_name, family_name)
        async with store.transaction(self._engine) as tx:
            if await store.count_attempt(tx, "mail", user.email_index):
                return
            if (account := await store.find_account(tx, user.email_index)) is None:
                await store.insert_pending_user(tx, user, _hash(token))
                await store.record(tx, "registered", user.id, user.id)
                mail = verification_mail(address.text, token)
            else:
                # To the address as its owner wrote it: the spelling used now may lead to somebody else.
                mail = known_address_mail((await self._open(tx, account.user_id)).email)
        self._mailer.send(mail)

    async def verify(self, token: str) -> None:
        """Make a user of the registration that *token* was mailed for.

        Raises:
            InvalidArgument: INVALID_FIELD ``token``, whatever is wrong with it.
        """
        async with store.transaction(self._engine) as tx:
            user_id = await store.find_pending_user(tx, _hash(token))
        if user_id is None:
            raise invalid_token()
        await self._system.commit(
            VerifyUser(actor=user_id, method="VerifyEmail", request_id="", user_id=user_id, token_hash=_hash(token))
        )

    async def person(self, user_id: str) -> Person:
        """A user in the clear."""
        async with store.transaction(self._engine) as tx:
            return await self._open(tx, user_id)

    async def ensure_administrator(self, email: str, password: str) -> None:
        """See that there is a verified administrator with this address; an existing one keeps their password.

        Raises:
            InvalidArgument: the address or the password would not be accepted from anybody.
        """
        address = parse_address(email)
        check_password(password, address)
        index = self._addresses.of(address)
        async with store.transaction(self._engine) as tx:
            if account := await store.find_account(tx, index):
                await store.make_administrator(tx, account.user_id)
                return
        user = self._sealed(address, await self._passwords.hash(password), "", "", administrator=True)
        async with store.transaction(self._engine) as tx:
            await store.insert_pending_user(tx, user, token_hash=None)
        unit = VerifyUser(actor=SERVICE_ACTOR, method="Bootstrap", request_id="", user_id=user.id, token_hash=None)
        try:
            await self._system.commit(unit)
        except InvalidArgument:
            # Another replica was faster; its administrator is as good, and this registration disappears by itself.
            return

    def _sealed(
        self, address: Address, password_hash: str, given_name: str, family_name: str, *, administrator: bool = False
    ) -> SealedUser:
        user_id = str(uuid4())
        key, wrapped = self._keyring.new_key(user_id)
        return SealedUser(
            id=user_id,
            email_index=self._addresses.of(address),
            password_hash=password_hash,
            email=key.seal("email", address.text),
            given_name=key.seal("given_name", given_name),
            family_name=key.seal("family_name", family_name),
            kek_version=wrapped.kek_version,
            wrapped_key=wrapped.sealed,
            administrator=administrator,
        )

    async def _open(self, tx: AsyncConnection, user_id: str) -> Person:
        found = await store.get_user(tx, user_id)
        if found is None:
            raise NotFound("NOT_FOUND", "there is no such user")
        user, create_time = found
        key = self._keyring.unwrap(user.id, WrappedKey(user.kek_version, user.wrapped_key))
        return Person(
            user_id=user.id,
            email=key.open("email", user.email),
            given_name=key.open("given_name", user.given_name),
            family_name=key.open("family_name", user.family_name),
            create_time=create_time,
        )


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
