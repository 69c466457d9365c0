"""Users, their keys and sessions, namespaces, members, the audit trail, and the log of ``system``."""

from __future__ import annotations

from alembic import op

from services.runtime.changelog import LOG_ROW_SECURITY, LOG_TABLES

revision = "0001"
down_revision = None

TABLES = (
    """CREATE TABLE users (
        id uuid PRIMARY KEY,
        email_index bytea NOT NULL,
        email_verified boolean NOT NULL DEFAULT false,
        administrator boolean NOT NULL DEFAULT false,
        password_hash text NOT NULL,
        email bytea NOT NULL,
        given_name bytea NOT NULL,
        family_name bytea NOT NULL,
        create_time timestamptz NOT NULL DEFAULT now()
    )""",
    "CREATE UNIQUE INDEX users_email_index_key ON users (email_index) WHERE email_verified",
    "CREATE INDEX users_email_index_pending_idx ON users (email_index) WHERE NOT email_verified",
    """CREATE TABLE user_keys (
        user_id uuid PRIMARY KEY REFERENCES users ON DELETE CASCADE,
        kek_version smallint NOT NULL,
        wrapped_key bytea NOT NULL,
        create_time timestamptz NOT NULL DEFAULT now()
    )""",
    """CREATE TABLE verifications (
        token_hash bytea PRIMARY KEY,
        user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
        expire_time timestamptz NOT NULL
    )""",
    "CREATE INDEX verifications_user_id_idx ON verifications (user_id)",
    """CREATE TABLE sessions (
        id uuid PRIMARY KEY,
        user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
        generation integer NOT NULL DEFAULT 0,
        create_time timestamptz NOT NULL DEFAULT now(),
        rotate_time timestamptz NOT NULL DEFAULT now(),
        expire_time timestamptz NOT NULL,
        end_time timestamptz,
        end_reason text
    )""",
    "CREATE INDEX sessions_user_id_idx ON sessions (user_id)",
    """CREATE TABLE throttles (
        purpose text NOT NULL,
        key bytea NOT NULL,
        attempts integer NOT NULL,
        last_time timestamptz NOT NULL,
        blocked_until timestamptz NOT NULL,
        PRIMARY KEY (purpose, key)
    )""",
    """CREATE TABLE namespaces (
        id text COLLATE "C" PRIMARY KEY,
        epoch text NOT NULL,
        display_name text NOT NULL,
        mass_change_guard boolean NOT NULL,
        deleting boolean NOT NULL DEFAULT false,
        revision bigint NOT NULL,
        create_time timestamptz NOT NULL,
        update_time timestamptz NOT NULL
    )""",
    "CREATE INDEX namespaces_deleting_idx ON namespaces (id) WHERE deleting",
    """CREATE TABLE members (
        namespace text COLLATE "C" NOT NULL REFERENCES namespaces,
        user_id uuid NOT NULL REFERENCES users,
        role smallint NOT NULL,
        revision bigint NOT NULL,
        create_time timestamptz NOT NULL,
        update_time timestamptz NOT NULL,
        PRIMARY KEY (namespace, user_id)
    )""",
    "CREATE INDEX members_user_id_namespace_idx ON members (user_id, namespace)",
    """CREATE TABLE audit (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        time timestamptz NOT NULL DEFAULT now(),
        action text NOT NULL,
        actor text NOT NULL,
        namespace text NOT NULL DEFAULT '',
        subject text NOT NULL DEFAULT ''
    )""",
)

# Whom a transaction acts for, said by `ledger_sql.act_for`. A setting that was made for one transaction reads as ''
# after it. Subqueries, so that the setting is read once per statement and not once per row.
NAMESPACES = "ANY ((SELECT nullif(current_setting('app.tenants', true), '')::text[])::text[])"

# A transaction writes only to the tenants that it names. It reads these, and what its user is a member of. The work of
# `system` is, besides, to complete deletions, so it may find them.
TENANT_ROW_SECURITY = (
    "ALTER TABLE members ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE members FORCE ROW LEVEL SECURITY",
    f"CREATE POLICY tenants ON members USING (namespace = {NAMESPACES}) WITH CHECK (namespace = {NAMESPACES})",
    """CREATE POLICY own ON members FOR SELECT USING (
        user_id = (SELECT nullif(current_setting('app.user', true), '')::uuid))""",
    "ALTER TABLE namespaces ENABLE ROW LEVEL SECURITY",
    "ALTER TABLE namespaces FORCE ROW LEVEL SECURITY",
    f"CREATE POLICY tenants ON namespaces USING (id = {NAMESPACES}) WITH CHECK (id = {NAMESPACES})",
    """CREATE POLICY own ON namespaces FOR SELECT USING (
        EXISTS (SELECT FROM members m WHERE m.namespace = namespaces.id
            AND m.user_id = (SELECT nullif(current_setting('app.user', true), '')::uuid)))""",
    """CREATE POLICY deletions ON namespaces FOR SELECT USING (
        deleting AND current_setting('app.namespace', true) = 'system')""",
)

# The trail can be added to and read. The default privileges of the schema gave the service more.
APPEND_ONLY_AUDIT = """DO $$
    DECLARE
        grantee name;
    BEGIN
        FOR grantee IN
            SELECT DISTINCT r.rolname FROM pg_class c, aclexplode(c.relacl) a JOIN pg_roles r ON r.oid = a.grantee
            WHERE c.oid = 'audit'::regclass AND a.grantee <> c.relowner
        LOOP
            EXECUTE format('REVOKE UPDATE, DELETE ON audit FROM %I', grantee);
        END LOOP;
    END $$"""


def upgrade() -> None:
    for statement in (*TABLES, *TENANT_ROW_SECURITY, APPEND_ONLY_AUDIT, *LOG_TABLES):
        op.execute(statement)
    # The life of `system` is the life of this database. Written before row-level security begins.
    op.execute("INSERT INTO heads (namespace, epoch) VALUES ('system', left(gen_random_uuid()::text, 8))")
    for statement in LOG_ROW_SECURITY:
        op.execute(statement)
