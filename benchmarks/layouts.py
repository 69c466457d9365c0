"""The two ways of indexing entities that are compared: one table of index entries, or expression indexes per type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from psycopg import Connection, sql

from benchmarks.records import Record, blobs, descending, documents, integers, number_key, place_key, string_key, texts

NAMESPACE = "airports-demo"
PAGE_SIZE = 50
EXAMINED_LIMIT = 10_000

Query = tuple[sql.Composed, dict[str, Any]]


class Layout(Protocol):
    """Types are numbered; every type has the indexes (city), (population desc) and (country, elevation)."""

    name: str
    prepare: bool

    def create(self, admin: Connection) -> None: ...
    def add_type(self, admin: Connection, type_: int) -> None: ...
    def insert(self, app: Connection, type_: int, rows: Sequence[Record]) -> None: ...
    def update(self, app: Connection, type_: int, old: Sequence[Record], new: Sequence[Record]) -> None: ...
    def page(self, type_: int, country: str, elevation: float) -> Query: ...
    def sparse_page(self, type_: int, population: float) -> Query: ...
    def count(self, type_: int, low: float, high: float) -> Query: ...


class OneTable:
    """Every index of every type is a range of one table's primary key; row-level security is forced."""

    name = "one_table"
    prepare = True

    def create(self, admin: Connection) -> None:
        """Wide columns come last in the heap, first what needs alignment; the primary key sets its own order."""
        admin.execute(
            """
            CREATE SCHEMA one_table;
            CREATE TABLE one_table.entities (
                revision  bigint NOT NULL,
                namespace text COLLATE "C" NOT NULL,
                type      text COLLATE "C" NOT NULL,
                id        text COLLATE "C" NOT NULL,
                data      jsonb NOT NULL,
                message   bytea NOT NULL,
                PRIMARY KEY (namespace, type, id)
            ) WITH (fillfactor = 90);
            CREATE TABLE one_table.index_entries (
                index_id  bigint NOT NULL,
                deleted   boolean NOT NULL,
                namespace text COLLATE "C" NOT NULL,
                key       bytea NOT NULL,
                id        text COLLATE "C" NOT NULL,
                PRIMARY KEY (namespace, index_id, deleted, key, id)
            );
            """
        )
        for table in ("one_table.entities", "one_table.index_entries"):
            force_row_security(admin, table)
        admin.execute(
            "GRANT USAGE ON SCHEMA one_table TO app; GRANT ALL ON ALL TABLES IN SCHEMA one_table TO app, bypass;"
            "GRANT USAGE ON SCHEMA one_table TO bypass"
        )

    def add_type(self, admin: Connection, type_: int) -> None:
        """Nothing to do: that is the point of this layout."""

    def insert(self, app: Connection, type_: int, rows: Sequence[Record]) -> None:
        self.insert_entities(app, [(type_, row) for row in rows])
        self.insert_entries(app, [(type_, row) for row in rows])

    def insert_entities(self, app: Connection, rows: Sequence[tuple[int, Record]]) -> None:
        app.execute(
            "INSERT INTO one_table.entities (revision, namespace, type, id, data, message)"
            " SELECT 1, %s, * FROM unnest(%s, %s, %s, %s)",
            (
                NAMESPACE,
                texts([f"type{type_}" for type_, _ in rows]),
                texts([row.id for _, row in rows]),
                documents([row.data for _, row in rows]),
                blobs([row.data for _, row in rows]),
            ),
            prepare=True,
        )

    def insert_entries(self, app: Connection, rows: Sequence[tuple[int, Record]]) -> None:
        app.execute(
            "INSERT INTO one_table.index_entries (namespace, deleted, index_id, key, id)"
            " SELECT %s, false, * FROM unnest(%s, %s, %s)",
            (
                NAMESPACE,
                integers([index_id(type_, place) for type_, _ in rows for place in range(3)]),
                blobs([key for _, row in rows for key in row.keys]),
                texts([row.id for _, row in rows for _ in range(3)]),
            ),
            prepare=True,
        )

    def update(self, app: Connection, type_: int, old: Sequence[Record], new: Sequence[Record]) -> None:
        self.update_entities(app, type_, new)
        if changed := changed_keys(type_, old, new):
            self.delete_and_insert_entries(app, changed)

    def update_entities(self, app: Connection, type_: int, new: Sequence[Record]) -> None:
        app.execute(
            "UPDATE one_table.entities AS e SET revision = e.revision + 1, data = u.data, message = u.message"
            " FROM unnest(%s, %s, %s) AS u (id, data, message)"
            " WHERE e.namespace = %s AND e.type = %s AND e.id = u.id",
            (*_columns(new), NAMESPACE, f"type{type_}"),
            prepare=True,
        )

    def delete_and_insert_entries(self, app: Connection, changed: Sequence[tuple[int, bytes, bytes, str]]) -> None:
        index_ids, old_keys, new_keys, ids = _changed_columns(changed)
        app.execute(
            "DELETE FROM one_table.index_entries AS e USING unnest(%s, %s, %s) AS u (index_id, key, id)"
            " WHERE e.namespace = %s AND e.index_id = u.index_id AND NOT e.deleted AND e.key = u.key AND e.id = u.id",
            (index_ids, old_keys, ids, NAMESPACE),
            prepare=True,
        )
        app.execute(
            "INSERT INTO one_table.index_entries (namespace, deleted, index_id, key, id)"
            " SELECT %s, false, * FROM unnest(%s, %s, %s)",
            (NAMESPACE, index_ids, new_keys, ids),
            prepare=True,
        )

    def move_entries(self, app: Connection, changed: Sequence[tuple[int, bytes, bytes, str]]) -> None:
        """The same change as one UPDATE of the key."""
        index_ids, old_keys, new_keys, ids = _changed_columns(changed)
        app.execute(
            "UPDATE one_table.index_entries AS e SET key = u.new"
            " FROM unnest(%s, %s, %s, %s) AS u (index_id, old, new, id)"
            " WHERE e.namespace = %s AND e.index_id = u.index_id AND NOT e.deleted AND e.key = u.old AND e.id = u.id",
            (index_ids, old_keys, new_keys, ids, NAMESPACE),
            prepare=True,
        )

    def page(self, type_: int, country: str, elevation: float) -> Query:
        start, end = place_key(country, elevation), string_key(country) + b"\xff"
        return self._page(type_, 2, start, end, "data->>'kind' = 'small'")

    def sparse_page(self, type_: int, population: float) -> Query:
        return self._page(type_, 1, descending(number_key(population)), b"\xd0", "data->>'kind' = 'none'")

    def _page(self, type_: int, place: int, start: bytes, end: bytes, residual: str) -> Query:
        # LATERAL ... OFFSET 0 cannot be flattened: whatever the statistics say, the plan is a walk of at most 10,000
        # entries in key order with one probe each, which stops at the page. The last entry that may be examined comes
        # back even if it does not match, so that a short page knows where to go on.
        statement = sql.SQL(
            """
            SELECT walked.key, walked.id, entity.revision, entity.message
            FROM (
                SELECT key, id, row_number() OVER (ORDER BY key, id) AS examined
                FROM one_table.index_entries
                WHERE namespace = %(namespace)s AND index_id = %(index_id)s AND NOT deleted
                  AND (key, id) > (%(after_key)s, %(after_id)s) AND key < %(end)s
                ORDER BY key, id LIMIT 10000
            ) AS walked
            LEFT JOIN LATERAL (
                SELECT revision, message FROM one_table.entities
                WHERE namespace = %(namespace)s AND type = %(type)s AND id = walked.id AND {} OFFSET 0
            ) AS entity ON true
            WHERE entity.message IS NOT NULL OR walked.examined = 10000
            ORDER BY walked.key, walked.id LIMIT %(limit)s
            """
        ).format(sql.SQL(residual))
        bounds = {"after_key": start, "after_id": "", "end": end, "limit": PAGE_SIZE + 1}
        return statement, {**self._index(type_, place), **bounds, "type": f"type{type_}"}

    def count(self, type_: int, low: float, high: float) -> Query:
        statement = sql.SQL(
            """
            SELECT count(*) FROM (
                SELECT FROM one_table.index_entries
                WHERE namespace = %(namespace)s AND index_id = %(index_id)s AND NOT deleted
                  AND key >= %(start)s AND key < %(end)s
                LIMIT 10000
            ) AS counted
            """
        ).format()
        bounds = {"start": descending(number_key(high)), "end": descending(number_key(low))}
        return statement, {**self._index(type_, 1), **bounds}

    def _index(self, type_: int, place: int) -> dict[str, Any]:
        return {"namespace": NAMESPACE, "index_id": index_id(type_, place)}


class TablePerType:
    """A table and three expression indexes per type. No row-level security: its indexes could not be used under it."""

    name = "per_type"
    # Two thousand statements per connection and kind would have to be kept prepared.
    prepare = False

    def create(self, admin: Connection) -> None:
        admin.execute("CREATE SCHEMA per_type; GRANT USAGE ON SCHEMA per_type TO app")

    def add_type(self, admin: Connection, type_: int) -> None:
        admin.execute(
            sql.SQL(
                """
                CREATE TABLE {table} (
                    revision  bigint NOT NULL,
                    id        text COLLATE "C" PRIMARY KEY,
                    data      jsonb NOT NULL,
                    message   bytea NOT NULL
                ) WITH (fillfactor = 90);
                CREATE INDEX ON {table} ((data->>'city'), id);
                CREATE INDEX ON {table} (((data->>'population')::float8) DESC, id);
                CREATE INDEX ON {table} ((data->>'country'), ((data->>'elevation')::float8), id);
                GRANT ALL ON {table} TO app
                """
            ).format(table=self.table(type_))
        )

    def insert(self, app: Connection, type_: int, rows: Sequence[Record]) -> None:
        statement = sql.SQL("INSERT INTO {} (revision, id, data, message) SELECT 1, * FROM unnest(%s, %s, %s)")
        app.execute(statement.format(self.table(type_)), _columns(rows), prepare=self.prepare)

    def update(self, app: Connection, type_: int, old: Sequence[Record], new: Sequence[Record]) -> None:
        statement = sql.SQL(
            "UPDATE {} AS e SET revision = e.revision + 1, data = u.data, message = u.message"
            " FROM unnest(%s, %s, %s) AS u (id, data, message) WHERE e.id = u.id"
        )
        app.execute(statement.format(self.table(type_)), _columns(new), prepare=self.prepare)

    def page(self, type_: int, country: str, elevation: float) -> Query:
        where = "data->>'country' = %(country)s AND (data->>'elevation')::float8 >= %(start)s"
        order = "(data->>'elevation')::float8"
        statement = self._page(type_, where, order, "data->>'kind' = 'small'")
        return statement, {"country": country, "start": elevation, "limit": PAGE_SIZE + 1}

    def sparse_page(self, type_: int, population: float) -> Query:
        order = "(data->>'population')::float8 DESC"
        where = "(data->>'population')::float8 <= %(start)s"
        statement = self._page(type_, where, order, "data->>'kind' = 'none'")
        return statement, {"start": population, "limit": PAGE_SIZE + 1}

    def _page(self, type_: int, where: str, order: str, residual: str) -> sql.Composed:
        return sql.SQL(
            """
            SELECT id, revision, message
            FROM (
                SELECT id, revision, message, data, row_number() OVER (ORDER BY {order}, id) AS examined
                FROM {table} WHERE {where} ORDER BY {order}, id LIMIT 10000
            ) AS walked
            WHERE {residual} OR examined = 10000
            ORDER BY examined LIMIT %(limit)s
            """
        ).format(order=sql.SQL(order), table=self.table(type_), where=sql.SQL(where), residual=sql.SQL(residual))

    def count(self, type_: int, low: float, high: float) -> Query:
        statement = sql.SQL(
            "SELECT count(*) FROM (SELECT FROM {} WHERE (data->>'population')::float8 > %(low)s"
            " AND (data->>'population')::float8 <= %(high)s LIMIT 10000) AS counted"
        ).format(self.table(type_))
        return statement, {"low": low, "high": high}

    def table(self, type_: int) -> sql.Identifier:
        return sql.Identifier("per_type", f"type{type_}")


def index_id(type_: int, place: int) -> int:
    """Number of the index at *place* (0 to 2) of a type."""
    return type_ * 3 + place


def changed_keys(type_: int, old: Sequence[Record], new: Sequence[Record]) -> list[tuple[int, bytes, bytes, str]]:
    """Return ``(index, old key, new key, entity)`` of every key that differs."""
    return [
        (index_id(type_, place), was, now, after.id)
        for before, after in zip(old, new, strict=True)
        for place, (was, now) in enumerate(zip(before.keys, after.keys, strict=True))
        if was != now
    ]


def force_row_security(admin: Connection, table: str) -> None:
    """Let a session see only rows of the namespace that its transaction has set, its owner included."""
    statement = sql.SQL(
        "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY; ALTER TABLE {table} FORCE ROW LEVEL SECURITY;"
        "CREATE POLICY tenant ON {table} USING (namespace = current_setting('app.namespace', true))"
    )
    admin.execute(statement.format(table=sql.Identifier(*table.split("."))))


def _columns(rows: Sequence[Record]) -> tuple[bytes, bytes, bytes]:
    return texts([row.id for row in rows]), documents([row.data for row in rows]), blobs([row.data for row in rows])


def _changed_columns(changed: Sequence[tuple[int, bytes, bytes, str]]) -> tuple[bytes, bytes, bytes, bytes]:
    index_ids, old_keys, new_keys, ids = zip(*changed, strict=True)
    return integers(index_ids), blobs(old_keys), blobs(new_keys), texts(ids)
