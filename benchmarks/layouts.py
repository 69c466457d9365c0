"""The two ways of indexing entities that are compared: one table of index entries, or expression indexes per type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString, Protocol

from psycopg import Connection, sql

from benchmarks.records import Record, blobs, descending, documents, integers, number_key, place_key, string_key, texts

NAMESPACE = "airports-demo"
PAGE_SIZE = 50
RESIDUAL, RESIDUAL_OF_NONE = "data->>'kind' = 'small'", "data->>'kind' = 'none'"

Query = tuple[sql.Composed, dict[str, Any]]
KeyChange = tuple[int, bytes, bytes, Record]  # index, old key, new key, entity


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
    # What an entry holds of its entity, beside the key.
    reference, reference_type = "id", 'text COLLATE "C"'
    entity_columns, extra_definition = "type, id, data, message", ""

    def create(self, admin: Connection) -> None:
        """The heap begins with what needs alignment; the primary key has an order of its own."""
        statement = sql.SQL(
            """
            CREATE SCHEMA {schema};
            CREATE TABLE {schema}.entities (
                revision  bigint NOT NULL, {extra_definition}
                namespace text COLLATE "C" NOT NULL,
                type      text COLLATE "C" NOT NULL,
                id        text COLLATE "C" NOT NULL,
                data      jsonb NOT NULL,
                message   bytea NOT NULL,
                PRIMARY KEY (namespace, type, id)
            ) WITH (fillfactor = 90);
            CREATE TABLE {schema}.index_entries (
                index_id  bigint NOT NULL,
                deleted   boolean NOT NULL,
                namespace text COLLATE "C" NOT NULL,
                key       bytea NOT NULL,
                {ref}     {reference_type} NOT NULL,
                PRIMARY KEY (namespace, index_id, deleted, key, {ref})
            );
            GRANT USAGE ON SCHEMA {schema} TO app, bypass;
            GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO app, bypass
            """
        )
        types = {"extra_definition": sql.SQL(self.extra_definition), "reference_type": sql.SQL(self.reference_type)}
        admin.execute(statement.format(schema=sql.Identifier(self.name), ref=sql.Identifier(self.reference), **types))
        for table in ("entities", "index_entries"):
            force_row_security(admin, f"{self.name}.{table}")

    def add_type(self, admin: Connection, type_: int) -> None:
        """Nothing to do: that is the point of this layout."""

    def references(self, rows: Sequence[Record]) -> bytes:
        return texts([row.id for row in rows])

    def insert(self, app: Connection, type_: int, rows: Sequence[Record]) -> None:
        self.insert_entities(app, [(type_, row) for row in rows])
        self.insert_entries(app, [(type_, row) for row in rows])

    def insert_entities(self, app: Connection, rows: Sequence[tuple[int, Record]]) -> None:
        columns = (
            integers([row.number for _, row in rows]),
            texts([f"type{type_}" for type_, _ in rows]),
            texts([row.id for _, row in rows]),
            documents([row.data for _, row in rows]),
            blobs([row.data for _, row in rows]),
        )
        statement = self._sql(
            "INSERT INTO {schema}.entities (revision, namespace, {columns})"
            " SELECT 1, %s, {columns} FROM unnest(%s, %s, %s, %s, %s) AS u (number, type, id, data, message)",
            columns=sql.SQL(self.entity_columns),
        )
        app.execute(statement, (NAMESPACE, *columns), prepare=True)

    def insert_entries(self, app: Connection, rows: Sequence[tuple[int, Record]]) -> None:
        index_ids = integers([index_id(type_, place) for type_, _ in rows for place in range(3)])
        keys = blobs([key for _, row in rows for key in row.keys])
        self._insert_entries(app, index_ids, keys, self.references([row for _, row in rows for _ in range(3)]))

    def _insert_entries(self, app: Connection, index_ids: bytes, keys: bytes, references: bytes) -> None:
        statement = self._sql(
            "INSERT INTO {schema}.index_entries (namespace, deleted, index_id, key, {ref})"
            " SELECT %s, false, * FROM unnest(%s, %s, %s)"
        )
        app.execute(statement, (NAMESPACE, index_ids, keys, references), prepare=True)

    def update(self, app: Connection, type_: int, old: Sequence[Record], new: Sequence[Record]) -> None:
        statement = self._sql(
            "UPDATE {schema}.entities AS e SET revision = e.revision + 1, data = u.data, message = u.message"
            " FROM unnest(%s, %s, %s) AS u (id, data, message)"
            " WHERE e.namespace = %s AND e.type = %s AND e.id = u.id"
        )
        app.execute(statement, (*_columns(new), NAMESPACE, f"type{type_}"), prepare=True)
        if changes := changed_keys(type_, old, new):
            self.delete_and_insert_entries(app, changes)

    def delete_and_insert_entries(self, app: Connection, changes: Sequence[KeyChange]) -> None:
        index_ids, old_keys, new_keys, references = self._change_columns(changes)
        statement = self._sql(
            "DELETE FROM {schema}.index_entries AS e USING unnest(%s, %s, %s) AS u (index_id, key, ref)"
            " WHERE e.namespace = %s AND e.index_id = u.index_id AND NOT e.deleted"
            " AND e.key = u.key AND e.{ref} = u.ref"
        )
        app.execute(statement, (index_ids, old_keys, references, NAMESPACE), prepare=True)
        self._insert_entries(app, index_ids, new_keys, references)

    def move_entries(self, app: Connection, changes: Sequence[KeyChange]) -> None:
        """The same change as one UPDATE of the key."""
        statement = self._sql(
            "UPDATE {schema}.index_entries AS e SET key = u.new"
            " FROM unnest(%s, %s, %s, %s) AS u (index_id, old, new, ref)"
            " WHERE e.namespace = %s AND e.index_id = u.index_id AND NOT e.deleted"
            " AND e.key = u.old AND e.{ref} = u.ref"
        )
        app.execute(statement, (*self._change_columns(changes), NAMESPACE), prepare=True)

    def _change_columns(self, changes: Sequence[KeyChange]) -> tuple[bytes, bytes, bytes, bytes]:
        index_ids, old_keys, new_keys, rows = zip(*changes, strict=True)
        return integers(index_ids), blobs(old_keys), blobs(new_keys), self.references(rows)

    def page(self, type_: int, country: str, elevation: float) -> Query:
        start, end = place_key(country, elevation), string_key(country) + b"\xff"
        return self._page(type_, 2, start, end, RESIDUAL)

    def sparse_page(self, type_: int, population: float) -> Query:
        return self._page(type_, 1, descending(number_key(population)), b"\xd0", RESIDUAL_OF_NONE)

    def entity_of_entry(self) -> str:
        return "type = %(type)s AND id = walked.id"

    def _page(self, type_: int, place: int, start: bytes, end: bytes, residual: str) -> Query:
        # LATERAL ... OFFSET 0 cannot be flattened: whatever the statistics say, the plan is a walk of at most 10,000
        # entries in key order with one probe each, which stops at the page. The last entry that may be examined comes
        # back even if it does not match, so that a short page knows where to go on.
        statement = self._sql(
            """
            SELECT walked.key, walked.{ref}, entity.revision, entity.message
            FROM (
                SELECT key, {ref}, row_number() OVER (ORDER BY key, {ref}) AS examined
                FROM {schema}.index_entries
                WHERE namespace = %(namespace)s AND index_id = %(index_id)s AND NOT deleted
                  AND (key, {ref}) > (%(after_key)s, %(after)s) AND key < %(end)s
                ORDER BY key, {ref} LIMIT 10000
            ) AS walked
            LEFT JOIN LATERAL (
                SELECT revision, message FROM {schema}.entities
                WHERE namespace = %(namespace)s AND {entity_of_entry} AND {residual} OFFSET 0
            ) AS entity ON true
            WHERE entity.message IS NOT NULL OR walked.examined = 10000
            ORDER BY walked.key, walked.{ref} LIMIT %(limit)s
            """,
            residual=sql.SQL(residual),
            entity_of_entry=sql.SQL(self.entity_of_entry()),
        )
        bounds = {"after_key": start, "after": self.first_reference(), "end": end, "limit": PAGE_SIZE + 1}
        return statement, {**self._index(type_, place), **bounds, "type": f"type{type_}"}

    def first_reference(self) -> str | int:
        """Sorts before every entity."""
        return ""

    def count(self, type_: int, low: float, high: float) -> Query:
        statement = self._sql(
            """
            SELECT count(*) FROM (
                SELECT FROM {schema}.index_entries
                WHERE namespace = %(namespace)s AND index_id = %(index_id)s AND NOT deleted
                  AND key >= %(start)s AND key < %(end)s
                LIMIT 10000
            ) AS counted
            """
        )
        bounds = {"start": descending(number_key(high)), "end": descending(number_key(low))}
        return statement, {**self._index(type_, 1), **bounds}

    def _index(self, type_: int, place: int) -> dict[str, Any]:
        return {"namespace": NAMESPACE, "index_id": index_id(type_, place)}

    def _sql(self, text: LiteralString, **parts: sql.SQL) -> sql.Composed:
        return sql.SQL(text).format(schema=sql.Identifier(self.name), ref=sql.Identifier(self.reference), **parts)


class NumberedEntities(OneTable):
    """The same, but an entry refers to its entity by a number of eight bytes that is unique in the namespace."""

    name = "numbered"
    reference, reference_type = "number", "bigint"
    entity_columns = "number, type, id, data, message"
    extra_definition = "number bigint NOT NULL, UNIQUE (namespace, number),"

    def references(self, rows: Sequence[Record]) -> bytes:
        return integers([row.number for row in rows])

    def entity_of_entry(self) -> str:
        return "number = walked.number"

    def first_reference(self) -> str | int:
        return 0


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
        statement = self._page(type_, where, "(data->>'elevation')::float8", "ASC", RESIDUAL)
        return statement, {"country": country, "start": elevation, "limit": PAGE_SIZE + 1}

    def sparse_page(self, type_: int, population: float) -> Query:
        where = "(data->>'population')::float8 <= %(start)s"
        statement = self._page(type_, where, "(data->>'population')::float8", "DESC", RESIDUAL_OF_NONE)
        return statement, {"start": population, "limit": PAGE_SIZE + 1}

    def _page(self, type_: int, where: str, order: str, direction: str, residual: str) -> sql.Composed:
        return sql.SQL(
            """
            SELECT position, id, revision, message
            FROM (
                SELECT {order} AS position, id, revision, message, data,
                    row_number() OVER (ORDER BY {order} {direction}, id) AS examined
                FROM {table} WHERE {where} ORDER BY {order} {direction}, id LIMIT 10000
            ) AS walked
            WHERE {residual} OR examined = 10000
            ORDER BY position {direction}, id LIMIT %(limit)s
            """
        ).format(
            order=sql.SQL(order),
            direction=sql.SQL(direction),
            table=self.table(type_),
            where=sql.SQL(where),
            residual=sql.SQL(residual),
        )

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


def changed_keys(type_: int, old: Sequence[Record], new: Sequence[Record]) -> list[KeyChange]:
    """Return every key that differs."""
    return [
        (index_id(type_, place), was, now, after)
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
