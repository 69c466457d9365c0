"""The tables of the user service, beside those of its log (``runtime.changelog``).

Columns of type ``bytea`` that hold personal data are sealed (``envelope``); nothing else here tells who somebody is.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    Uuid,
    func,
    text,
)

metadata = MetaData()


def _user_id(*, primary_key: bool = False) -> Column[str]:
    owner = ForeignKey("users.id", ondelete="CASCADE")
    return Column("user_id", Uuid(as_uuid=False), owner, primary_key=primary_key, nullable=False)


def _moment(name: str, *, nullable: bool = False, default: bool = False) -> Column[datetime]:
    return Column(name, DateTime(timezone=True), nullable=nullable, server_default=func.now() if default else None)


users = Table(
    "users",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True),
    # HMAC of the canonical address. Unique among the verified: registrations of one address may wait side by side.
    Column("email_index", LargeBinary, nullable=False),
    Column("email_verified", Boolean, nullable=False, server_default=text("false")),
    Column("administrator", Boolean, nullable=False, server_default=text("false")),
    Column("password_hash", Text, nullable=False),
    Column("email", LargeBinary, nullable=False),
    Column("given_name", LargeBinary, nullable=False),
    Column("family_name", LargeBinary, nullable=False),
    _moment("create_time", default=True),
)
Index("users_email_index_key", users.c.email_index, unique=True, postgresql_where=users.c.email_verified)
Index("users_email_index_pending_idx", users.c.email_index, postgresql_where=~users.c.email_verified)

# Apart from the users, so that it can move behind a connection and a backup policy of its own.
user_keys = Table(
    "user_keys",
    metadata,
    _user_id(primary_key=True),
    Column("kek_version", SmallInteger, nullable=False),
    Column("wrapped_key", LargeBinary, nullable=False),
    _moment("create_time", default=True),
)

verifications = Table(
    "verifications",
    metadata,
    Column("token_hash", LargeBinary, primary_key=True),
    _user_id(),
    _moment("expire_time"),
)
Index("verifications_user_id_idx", verifications.c.user_id)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Uuid(as_uuid=False), primary_key=True),
    _user_id(),
    # The refresh token that is valid now is the one of this generation: see sessions.present.
    Column("generation", Integer, nullable=False, server_default=text("0")),
    _moment("create_time", default=True),
    _moment("rotate_time", default=True),
    _moment("expire_time"),
    _moment("end_time", nullable=True),
    Column("end_reason", Text),
)
Index("sessions_user_id_idx", sessions.c.user_id)

throttles = Table(
    "throttles",
    metadata,
    Column("purpose", Text, primary_key=True),
    Column("key", LargeBinary, primary_key=True),
    Column("attempts", Integer, nullable=False),
    _moment("last_time"),
    _moment("blocked_until"),
)

namespaces = Table(
    "namespaces",
    metadata,
    Column("id", Text(collation="C"), primary_key=True),
    Column("epoch", Text, nullable=False),
    Column("display_name", Text, nullable=False),
    Column("mass_change_guard", Boolean, nullable=False),
    Column("deleting", Boolean, nullable=False, server_default=text("false")),
    Column("revision", BigInteger, nullable=False),
    _moment("create_time"),
    _moment("update_time"),
    *(
        Column(name, BigInteger, nullable=False, server_default=text("0"))
        for name in ("max_entities", "max_bytes", "max_writes_per_second")
    ),
)
Index("namespaces_deleting_idx", namespaces.c.id, postgresql_where=namespaces.c.deleting)

members = Table(
    "members",
    metadata,
    Column("namespace", Text(collation="C"), ForeignKey("namespaces.id"), primary_key=True),
    Column("user_id", Uuid(as_uuid=False), ForeignKey("users.id"), primary_key=True),
    Column("role", SmallInteger, nullable=False),
    Column("revision", BigInteger, nullable=False),
    _moment("create_time"),
    _moment("update_time"),
)
Index("members_user_id_namespace_idx", members.c.user_id, members.c.namespace)

# Append-only; ids only.
audit = Table(
    "audit",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    _moment("time", default=True),
    Column("action", Text, nullable=False),
    Column("actor", Text, nullable=False),
    Column("namespace", Text, nullable=False, server_default=text("''")),
    Column("subject", Text, nullable=False, server_default=text("''")),
)
