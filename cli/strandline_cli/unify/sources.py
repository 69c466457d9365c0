"""Sources into tables of an embedded DuckDB, which reads the files that the plan names and nothing else."""

from __future__ import annotations

import lzma
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import duckdb
import psycopg
from psycopg import sql

from strandline_cli.unify.plan import Plan, PlanError, Source

ROW: Final = "_n"
"""The number of a row in its source, in the order of keys."""
_AT_ONCE: Final = 2000
_MOMENT: Final = "TIMESTAMP WITH TIME ZONE"
# By PostgreSQL's type: what else there is comes as text.
_TYPES: Final = {
    "bool": "BOOLEAN",
    "int2": "SMALLINT",
    "int4": "INTEGER",
    "int8": "BIGINT",
    "float4": "FLOAT",
    "float8": "DOUBLE",
    "numeric": "DOUBLE",
}


class Tables:
    """The sources of a plan, loaded: table ``source_<i>`` for the i-th, with its columns by name."""

    def __init__(self, plan: Plan, scratch: Path) -> None:
        """*scratch* is an empty folder for unpacked files.

        Raises:
            PlanError: a source cannot be read, or its rows have no proper keys.
        """
        self.plan = plan
        self.database = duckdb.connect(":memory:")
        prepared = [_prepared(source, place, scratch) for place, source in enumerate(plan.sources)]
        self._lock_up([path for _, files in prepared for path in files.values()], scratch)
        self.columns = [
            self._load(place, plan.sources[place].key, query, files) for place, (query, files) in enumerate(prepared)
        ]

    def count(self, place: int) -> int:
        """The rows of a source."""
        return int(self.one(f"SELECT count(*) FROM source_{place}"))

    def one(self, query: str) -> Any:
        row = self.database.execute(query).fetchone()
        assert row is not None
        return row[0]

    def rows(self, query: str) -> Iterator[tuple[Any, ...]]:
        """The rows of a query, while others run."""
        cursor = self.database.cursor()
        cursor.execute(query)
        while rows := cursor.fetchmany(_AT_ONCE):
            yield from rows

    def check_columns(self, place: int, names: Sequence[str], where: str) -> None:
        """Refuse a plan that speaks of columns that a source does not have."""
        for name in names:
            if name not in self.columns[place]:
                known = ", ".join(self.columns[place])
                raise PlanError(f"{where}: the source {self.plan.sources[place].name} has no column {name!r}: {known}")

    def _lock_up(self, files: Sequence[Path], scratch: Path) -> None:
        """Let no SQL of a plan reach the network, or any other file."""
        settings: dict[str, Any] = {
            "TimeZone": "UTC",
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "temp_directory": str(scratch),
            "allowed_paths": [str(path) for path in files],
            "enable_external_access": False,
            "lock_configuration": True,
        }
        for name, value in settings.items():
            self.database.execute(f"SET {name} = $1", [value])

    def _load(self, place: int, key: str, query: str, files: dict[str, Path]) -> tuple[str, ...]:
        where = f"sources[{place}].sql"
        try:
            statements = self.database.extract_statements(query)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise PlanError(f"{where}: must be one SELECT")
            parameters = {name: str(files[name]) for name in sorted(statements[0].named_parameters) if name in files}
            if missing := statements[0].named_parameters - files.keys():
                raise PlanError(
                    f"{where}: ${min(missing)} is none of the files: {', '.join(files) or 'there are none'}"
                )
            self.database.execute(f"CREATE TEMP TABLE loaded AS {query.rstrip().rstrip(';')}", parameters)
            types = {name: kind for name, kind, *_ in self.database.execute("DESCRIBE loaded").fetchall()}
            columns = tuple(types)
            for name, kind in types.items():
                self._make_text(name, kind, where)
            if key not in columns:
                raise PlanError(f"sources[{place}].key: there is no column {key!r}: {', '.join(columns)}")
            name = quoted(key)
            self.database.execute(
                f"CREATE TABLE source_{place} AS "
                f"SELECT row_number() OVER (ORDER BY {name}::VARCHAR) - 1 AS {ROW}, * FROM loaded"
            )
            self.database.execute("DROP TABLE loaded")
            bad = self.database.execute(
                f"SELECT {name}::VARCHAR, count(*) FROM source_{place} GROUP BY 1 "
                f"HAVING count(*) > 1 OR count({name}) = 0 ORDER BY 1 NULLS FIRST LIMIT 1"
            ).fetchone()
        except duckdb.Error as failure:
            raise PlanError(f"{where}: {failure}") from None
        if bad is not None:
            said = "is null in a row" if bad[0] is None else f"is not unique: {bad[0]!r} comes {bad[1]} times"
            raise PlanError(f"sources[{place}].key: {key} {said}")
        return columns

    def _make_text(self, name: str, kind: str, where: str) -> None:
        """Make a column of moments text of one width, ISO 8601 in UTC: so they can be compared, and JSON has them."""
        if _MOMENT not in kind:
            return
        if kind != _MOMENT:
            raise PlanError(f"{where}: the column {name!r} is {kind}: cast the moments in it to text in the SQL")
        column = quoted(name)
        fraction = self.one(f"SELECT bool_or(epoch_us({column}) % 1000000 <> 0) FROM loaded WHERE isfinite({column})")
        form = "%Y-%m-%dT%H:%M:%S.%fZ" if fraction else "%Y-%m-%dT%H:%M:%SZ"
        self.database.execute(
            f"ALTER TABLE loaded ALTER {column} TYPE VARCHAR USING "
            f"CASE WHEN isfinite({column}) THEN strftime({column}::TIMESTAMP, '{form}') END"
        )


def quoted(name: str) -> str:
    """*name* as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _prepared(source: Source, place: int, scratch: Path) -> tuple[str, dict[str, Path]]:
    """A query and files that DuckDB can read: the plan's, unpacked where need be, or what PostgreSQL answers."""
    if source.postgresql:
        path = scratch / f"{place}.csv"
        return _copied(source, place, path), {"rows": path}
    files = {}
    for name, path in source.files.items():
        if path.suffix == ".xz":
            files[name] = scratch / f"{place}-{name}-{path.stem}"
            try:
                with lzma.open(path) as packed, files[name].open("wb") as plain:
                    shutil.copyfileobj(packed, plain, 2**20)
            except (lzma.LZMAError, EOFError) as failure:
                raise PlanError(f"sources[{place}].files.{name}: {path}: {failure}") from None
        else:
            files[name] = path.resolve()
    return source.sql, files


def _copied(source: Source, place: int, path: Path) -> str:
    """Copy what the source's select answers into a CSV file; the query that reads it, with the types as they were."""
    query = sql.SQL(source.sql.rstrip().rstrip(";"))
    try:
        with psycopg.connect(source.postgresql) as connection:
            connection.read_only = True
            cursor = connection.execute(sql.SQL("SELECT * FROM ({}) plan LIMIT 0").format(query))
            columns = [
                (column.name, connection.adapters.types.get(column.type_code)) for column in cursor.description or ()
            ]
            with (
                path.open("wb") as file,
                cursor.copy(sql.SQL("COPY (SELECT * FROM ({}) plan) TO STDOUT (FORMAT csv)").format(query)) as copy,
            ):
                for block in copy:
                    file.write(block)
    except psycopg.Error as failure:
        raise PlanError(f"sources[{place}].sql: {failure}") from None
    declared = ", ".join(
        f"{quoted(name)}: '{_TYPES.get(info.name, 'VARCHAR') if info else 'VARCHAR'}'" for name, info in columns
    )
    return (
        "SELECT * FROM read_csv($rows, header = false, auto_detect = false, delim = ',', quote = '\"', "
        f"escape = '\"', nullstr = '', allow_quoted_nulls = false, columns = {{{declared}}})"
    )
