"""Units about people: an address was verified, a session was ended."""

from __future__ import annotations

from dataclasses import dataclass

from services.runtime.committer import Stamp
from services.runtime.errors import InvalidArgument, invalid_field
from services.user import ledger_sql as sql
from services.user import records
from services.user.ledger import Facts, Plan, SystemUnit
from services.user.model import EndReason


@dataclass(kw_only=True, eq=False)
class VerifyUser(SystemUnit):
    """A registration becomes a user: the first one whose token is presented has the address.

    ``token_hash`` must still be presentable when the unit is decided; None vouches for the address without a token.
    """

    user_id: str
    token_hash: bytes | None

    def __post_init__(self) -> None:
        # All verifications exclude each other: two registrations of one address must not share a batch, and the
        # address is not known here.
        self.exclusive = frozenset({("verification",), ("user", self.user_id)})
        self.users = (self.user_id,)
        self.tokens = () if self.token_hash is None else (self.token_hash,)
        self.records = (records.user_key(self.user_id),)

    def decide(self, facts: Facts, stamp: Stamp) -> Plan:
        registration = facts.users.get(self.user_id)
        presentable = self.token_hash is None or self.token_hash in facts.tokens
        if registration is None or registration.verified or registration.address_taken or not presentable:
            raise invalid_token()
        return Plan(
            changes=(records.created(records.user_key(self.user_id), records.user_data(), self.actor, stamp),),
            statements=(
                sql.verify_user(self.user_id),
                sql.insert_audit("user_verified", self.actor, "", self.user_id),
            ),
        )


@dataclass(kw_only=True, eq=False)
class EndSession(SystemUnit):
    """A session is over, and its access tokens with it; ending it twice does nothing."""

    session_id: str
    reason: EndReason

    def __post_init__(self) -> None:
        self.exclusive = frozenset({("session", self.session_id)})
        self.sessions = (self.session_id,)
        self.records = (records.revocation_key(self.session_id),)

    def decide(self, facts: Facts, stamp: Stamp) -> Plan:
        session = facts.sessions.get(self.session_id)
        if session is None or session.ended:
            return Plan()
        data = records.revocation_data(session.user_id, stamp.commit_time)
        return Plan(
            changes=(records.created(records.revocation_key(self.session_id), data, self.actor, stamp),),
            statements=(
                sql.end_session(self.session_id, self.reason, stamp.commit_time),
                sql.insert_audit(str(self.reason), self.actor, "", self.session_id),
            ),
        )


def invalid_token() -> InvalidArgument:
    """The one answer to a mailed token that is unknown, used, expired, or too late."""
    return invalid_field("token", "is not valid, was used, or has expired")
