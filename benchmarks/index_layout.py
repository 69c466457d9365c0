"""Index entries in one table, or expression indexes in a table per type? Both measured, interleaved, on one server.

``python -m benchmarks.index_layout --entities 1000000 --types 2000`` prints one JSON object a line, then a table.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ParamSpec

import orjson
import psycopg
from psycopg import Connection, sql

from benchmarks.ddl_waits import report_waits
from benchmarks.layouts import (
    NAMESPACE,
    Layout,
    NumberedEntities,
    OneTable,
    Query,
    TablePerType,
    changed_keys,
    force_row_security,
)
from benchmarks.postgres import throwaway_postgres
from benchmarks.records import COUNTRIES, MAX_ELEVATION, MAX_POPULATION, Record, descending, number_key, records, texts
from benchmarks.report import Report, stage, timed

BATCH = 500
SAMPLE = 30_000
MAIN_TYPE = 0
POLICIES = {
    "per_row": "namespace = current_setting('app.namespace', true)",
    "once": "namespace = (SELECT current_setting('app.namespace', true))",
}
P = ParamSpec("P")
SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "autovacuum": "off",  # run by hand between the experiments, so that it falls on neither layout's figures
}


class Bench:
    """One server, both layouts, one application session for each so that neither warms the other's caches."""

    def __init__(self, conninfo: str, seed: int) -> None:
        self.report = Report()
        self.rng = random.Random(seed)
        self.conninfo = conninfo
        self.admin = psycopg.connect(conninfo, autocommit=True)
        self.admin.execute(
            "CREATE ROLE app LOGIN NOSUPERUSER NOBYPASSRLS; CREATE ROLE bypass LOGIN BYPASSRLS;"
            "GRANT pg_read_all_stats TO app"
        )
        self.numbers = itertools.count(1)
        self.one_table, self.per_type = OneTable(), TablePerType()
        self.entry_tables = [self.one_table, NumberedEntities()]
        self.layouts: list[Layout] = [*self.entry_tables, self.per_type]
        self.apps = {layout.name: self.connect("app") for layout in self.layouts}
        self.sample: list[Record] = []
        for layout in self.layouts:
            layout.create(self.admin)
            layout.add_type(self.admin, MAIN_TYPE)

    def connect(self, role: str) -> Connection:
        return psycopg.connect(self.conninfo, user=role, autocommit=True)

    def one(self, query: str) -> Any:
        """The only value of the only row."""
        row = self.admin.execute(query).fetchone()
        assert row is not None
        return row[0]

    def records(self, count: int) -> Iterator[Record]:
        return records(self.rng, itertools.islice(self.numbers, count))

    # Writing

    def load(self, entities: int) -> None:
        """Insert in batches of 500, alternating the layouts; report the first and the last tenth."""
        rows = self.records(entities)
        seconds: dict[str, list[float]] = {layout.name: [] for layout in self.layouts}
        wal = dict.fromkeys(seconds, 0)
        tenth = max(1, entities // 10 // BATCH)
        for number in range(entities // BATCH):
            batch = list(itertools.islice(rows, BATCH))
            self.sample += self.rng.sample(batch, min(BATCH, max(1, SAMPLE * BATCH // entities)))
            for layout in self.layouts if number % 2 else reversed(self.layouts):
                before = self.one("SELECT pg_current_wal_insert_lsn() - '0/0'")
                seconds[layout.name].append(self.insert(layout, MAIN_TYPE, batch))
                wal[layout.name] += int(self.one("SELECT pg_current_wal_insert_lsn() - '0/0'") - before)
            if number + 1 == tenth and entities // BATCH > tenth:
                self.growth_point((number + 1) * BATCH, seconds)
        for name in seconds:
            self.report.add(name, "insert.wal", wal[name] / entities, "bytes/row", entities)
        self.growth_point(entities, {name: values[-tenth:] for name, values in seconds.items()})

    def insert(self, layout: Layout, type_: int, batch: Sequence[Record]) -> float:
        app = self.apps[layout.name]
        return timed(in_namespace, app, layout.insert, app, type_, batch)

    def growth_point(self, entities: int, seconds: dict[str, list[float]]) -> None:
        for name, values in seconds.items():
            self.report.add(name, "insert", statistics.mean(values) / BATCH * 1e6, "us/row", entities)
        self.storage(entities)
        self.admin.execute("VACUUM ANALYZE")
        self.reads(entities)

    def storage(self, entities: int) -> None:
        tables = {
            "one_table": ["one_table.entities", "one_table.index_entries"],
            "numbered": ["numbered.entities", "numbered.index_entries"],
            "per_type": [f"per_type.type{MAIN_TYPE}"],
        }
        for name, of_layout in tables.items():
            heap = sum(self.one(f"SELECT pg_table_size('{table}')") for table in of_layout)
            indexes = sum(self.one(f"SELECT pg_indexes_size('{table}')") for table in of_layout)
            self.report.add(name, "storage.heap", heap / entities, "bytes/row", entities)
            self.report.add(name, "storage.indexes", indexes / entities, "bytes/row", entities)
            self.report.add(name, "storage.total", (heap + indexes) / entities, "bytes/row", entities)

    def split_insert(self, entities: int) -> None:
        """What the entries cost beside the entity alone (the ceiling), and what row-level security adds."""
        timings: dict[str, list[float]] = {}
        sessions = {"rls": self.apps["one_table"], "bypass": self.connect("bypass")}
        for _ in range(20):
            for role, session in sessions.items():
                rows = [(MAIN_TYPE + 1, row) for row in self.records(BATCH)]
                with session.transaction():
                    set_namespace(session)
                    entity = timed(self.one_table.insert_entities, session, rows)
                    entries = timed(self.one_table.insert_entries, session, rows)
                timings.setdefault(f"insert.entity_only.{role}", []).append(entity)
                timings.setdefault(f"insert.three_entries.{role}", []).append(entries)
        for name, values in timings.items():
            self.report.add("one_table", name, statistics.mean(values) / BATCH * 1e6, "us/row", entities)
        self.admin.execute("DELETE FROM one_table.entities WHERE type = 'type1'")
        self.admin.execute("DELETE FROM one_table.index_entries WHERE index_id BETWEEN 3 AND 5")

    def updates(self, entities: int) -> None:
        """Batches that change nothing indexed, and batches that change one indexed number of each entity."""
        self.rng.shuffle(self.sample)
        batches = [self.sample[at : at + BATCH] for at in range(0, len(self.sample) - BATCH + 1, BATCH)]
        third = min(20, len(batches) // 3)
        change: dict[str, Callable[[Record], Record]] = {"unindexed": self.closed, "one_number": self.grown}
        for place, (kind, edit) in enumerate(change.items()):
            seconds: dict[str, list[float]] = {layout.name: [] for layout in self.layouts}
            for old in batches[place * third : (place + 1) * third]:
                new = [edit(row) for row in old]
                for layout in self.layouts:
                    seconds[layout.name].append(self.update(layout, old, new))
            for name, values in seconds.items():
                self.report.add(name, f"update.{kind}", statistics.mean(values) / BATCH * 1e6, "us/row", entities)
        # There and back again, in alternating order: whatever comes second finds the pages in memory.
        app = self.apps["one_table"]
        ways = {"update_key": self.one_table.move_entries, "delete_insert": self.one_table.delete_and_insert_entries}
        moves: dict[str, list[float]] = {name: [] for name in ways}
        for turn, old in enumerate(batches[2 * third : 3 * third]):
            there = changed_keys(MAIN_TYPE, old, [self.grown(row) for row in old])
            back = [(index, now, was, row) for index, was, now, row in there]
            for name, changes in zip(list(ways)[:: -1 if turn % 2 else 1], (there, back), strict=True):
                moves[name].append(timed(in_namespace, app, ways[name], app, changes))
        for name, values in moves.items():
            self.report.add("one_table", f"entry.{name}", statistics.mean(values) / BATCH * 1e6, "us/row", entities)

    def update(self, layout: Layout, old: Sequence[Record], new: Sequence[Record]) -> float:
        app = self.apps[layout.name]
        return timed(in_namespace, app, layout.update, app, MAIN_TYPE, old, new)

    def closed(self, row: Record) -> Record:
        return replace(row, data=orjson.dumps({**orjson.loads(row.data), "open": None}))

    def grown(self, row: Record) -> Record:
        population = round(self.rng.random() * MAX_POPULATION)
        data = orjson.dumps({**orjson.loads(row.data), "population": population})
        return replace(row, data=data, population_key=descending(number_key(population)))

    # Reading

    def reads(self, entities: int) -> None:
        width = MAX_POPULATION * min(1.0, 10_000 / entities)
        draw = self.rng.random

        def page(layout: Layout, at: float, country: str) -> Query:
            return layout.page(MAIN_TYPE, country, at * MAX_ELEVATION * 0.9)

        def sparse_page(layout: Layout, at: float, country: str) -> Query:
            return layout.sparse_page(MAIN_TYPE, MAX_POPULATION * (0.5 + at / 2))

        def count(layout: Layout, at: float, country: str) -> Query:
            return layout.count(MAIN_TYPE, at * (MAX_POPULATION - width), at * (MAX_POPULATION - width) + width)

        for name, runs, query in (("page", 400, page), ("page_10000_examined", 40, sparse_page), ("count", 100, count)):
            at = [(draw(), self.rng.choice(COUNTRIES)) for _ in range(runs)]
            queries = {layout.name: [query(layout, *position) for position in at] for layout in self.layouts}
            if query is not sparse_page:  # its only row is the last one examined
                self.require_same_answers(queries)
            for subject, milliseconds in self.interleave(queries).items():
                self.report.add_percentiles(subject, name, milliseconds, entities)
            if name != "count":
                self.steered(name, queries["per_type"][: runs // 4], entities)
            for layout in self.layouts:
                plan = [self.explain(self.apps[layout.name], queries[layout.name][n])[1] for n in range(10)]
                self.report.add(layout.name, f"{name}.planning", statistics.median(plan), "ms", entities)

    def require_same_answers(self, queries: dict[str, list[Query]]) -> None:
        """Figures of layouts that answer differently could not be compared."""
        answers = []
        for name, of_layout in queries.items():
            app = self.apps[name]
            with app.transaction():
                set_namespace(app)
                answers.append([[row[-1] for row in app.execute(*query).fetchall()] for query in of_layout[:10]])
        if answers.count(answers[0]) != len(answers):
            raise RuntimeError("the layouts answer differently")

    def interleave(self, queries: dict[str, list[Query]]) -> dict[str, list[float]]:
        milliseconds: dict[str, list[float]] = {name: [] for name in queries}
        prepare = {layout.name: layout.prepare for layout in self.layouts}
        with contextlib.ExitStack() as transactions:
            for app in self.apps.values():
                transactions.enter_context(app.transaction())
                set_namespace(app)
            for turn in zip(*queries.values(), strict=True):
                for name, query in zip(queries, turn, strict=True):
                    milliseconds[name].append(run(self.apps[name], query, prepare=prepare[name]))
        return milliseconds

    def steered(self, name: str, queries: Sequence[Query], entities: int) -> None:
        """A table per type at its best: the planner is made to walk the index that gives the order."""
        app = self.connect("app")
        app.execute("SET enable_sort = off; SET enable_bitmapscan = off; SET enable_seqscan = off")
        milliseconds = [run(app, query, prepare=False) for query in queries]
        self.report.add("per_type", f"{name}.p50.steered", statistics.median(milliseconds), "ms", entities)

    def policy_cost(self, entities: int) -> None:
        """The same page with the setting read per row, once per statement, and with no policy at all, in turns."""
        app, bypass = self.apps["one_table"], self.connect("bypass")
        milliseconds: dict[str, list[float]] = {name: [] for name in ("none", *POLICIES)}
        for turn in range(12):
            policy = list(POLICIES)[turn % 2]
            self.set_policy(policy)
            for _ in range(40):
                country, elevation = self.rng.choice(COUNTRIES), self.rng.random() * MAX_ELEVATION * 0.9
                query = self.one_table.page(MAIN_TYPE, country, elevation)
                turns = [(policy, app), ("none", bypass)]
                self.rng.shuffle(turns)  # the second finds the pages in memory
                for name, session in turns:
                    with session.transaction():
                        set_namespace(session)
                        milliseconds[name].append(run(session, query, prepare=True))
        for name, values in milliseconds.items():
            self.report.add("one_table", f"policy.{name}.page.p50", statistics.median(values), "ms", entities)

    def set_policy(self, name: str) -> None:
        for table in ("entities", "index_entries"):
            self.admin.execute(f"ALTER POLICY tenant ON one_table.{table} USING ({POLICIES[name]})".encode())

    def explain(self, app: Connection, query: Query) -> tuple[str, float]:
        """Return the plan as text and the planning time in ms."""
        with app.transaction():
            set_namespace(app)
            statement, parameters = query
            row = app.execute(sql.SQL("EXPLAIN (SUMMARY, FORMAT JSON) {}").format(statement), parameters).fetchone()
        assert row is not None
        return json.dumps(row[0]), float(row[0][0]["Planning Time"])

    # What decides the schema

    def row_security_and_indexes(self, entities: int) -> None:
        """1 if the index condition survives a forced policy: only leakproof operators on plain columns do."""
        plan, _ = self.explain(self.apps["one_table"], self.one_table.page(MAIN_TYPE, "AF", 100.0))
        served = "Index Only Scan" in plan and "ROW(key, id) > ROW" in plan
        self.report.add("one_table", "rls.index_is_used", served, "bool", entities)
        self.admin.execute(
            "CREATE TABLE per_type.guarded (namespace text NOT NULL, id text PRIMARY KEY, data jsonb NOT NULL);"
            "INSERT INTO per_type.guarded SELECT 'airports-demo', id, data FROM one_table.entities LIMIT 5000;"
            "CREATE INDEX ON per_type.guarded ((data->>'city'));"
            "GRANT SELECT ON per_type.guarded TO app; ANALYZE per_type.guarded"
        )
        force_row_security(self.admin, "per_type.guarded")
        query = sql.SQL("SELECT id FROM per_type.guarded WHERE data->>'city' = %(city)s").format(), {"city": "City 1"}
        with self.apps["per_type"].transaction():
            self.apps["per_type"].execute("SET LOCAL enable_seqscan = off")
            plan, _ = self.explain(self.apps["per_type"], query)
        self.report.add("per_type", "rls.index_is_used", "guarded_expr_idx" in plan, "bool", entities)

    def density(self, entities: int) -> None:
        """How much of the indexes is air after random inserts: size now over size rebuilt at fillfactor 90."""
        tables = {"one_table": "one_table.index_entries", "numbered": "numbered.index_entries"}
        for name, table in {**tables, "per_type": f"per_type.type{MAIN_TYPE}"}.items():
            before = self.one(f"SELECT pg_indexes_size('{table}')")
            seconds = timed(self.admin.execute, f"REINDEX TABLE {table}")
            self.report.add(name, "index_bloat", before / self.one(f"SELECT pg_indexes_size('{table}')"), "x", entities)
            self.report.add(name, "reindex", seconds, "s", entities)

    def fillfactors(self) -> None:
        """Share of heap-only updates and their cost when nothing indexed changes, in the entities' own table."""
        ids = [row.id for row in self.sample[:20_000]]
        for fillfactor in (100, 90, 80):
            self.admin.execute(
                f"CREATE TABLE public.filled (LIKE one_table.entities INCLUDING INDEXES) WITH (fillfactor={fillfactor})"
            )
            self.admin.execute(
                "INSERT INTO public.filled SELECT e.* FROM one_table.entities e JOIN unnest(%s) u(id) USING (id)",
                (texts(ids),),
            )
            self.admin.execute("VACUUM ANALYZE public.filled")
            seconds = [
                timed(
                    self.admin.execute,
                    "UPDATE public.filled SET revision = revision + 1"
                    " WHERE namespace = %s AND type = 'type0' AND id = ANY(%s)",
                    (NAMESPACE, texts(self.rng.sample(ids, min(BATCH, len(ids))))),
                )
                for _ in range(20)
            ]
            self.admin.execute("SELECT pg_stat_force_next_flush()")
            hot = self.one("SELECT n_tup_hot_upd::float8 / n_tup_upd FROM pg_stat_user_tables WHERE relname = 'filled'")
            cost = statistics.mean(seconds) / BATCH * 1e6
            self.report.add("one_table", f"fillfactor_{fillfactor}.hot", 100 * hot, "%", len(ids))
            self.report.add("one_table", f"fillfactor_{fillfactor}.update", cost, "us/row", len(ids))
            self.admin.execute("DROP TABLE public.filled")

    # Many types

    def many_types(self, types: int) -> None:
        """Give every type 100 entities; a batch of 500 holds five types."""
        seconds: dict[str, list[float]] = {layout.name: [] for layout in self.layouts}
        numbers = range(10, 10 + types)
        catalog = self.one("SELECT count(*) FROM pg_class")
        ddl = [timed(self.per_type.add_type, self.admin, type_) for type_ in numbers]
        self.report.add("per_type", "add_type", statistics.mean(ddl) * 1e3, "ms", types)
        self.report.add("per_type", "catalog_rows", self.one("SELECT count(*) FROM pg_class") - catalog, "rows", types)
        self.report.add("one_table", "add_type", 0, "ms", types)
        for start in range(0, types - 4, 5):
            batch = [(type_, row) for type_ in numbers[start : start + 5] for row in self.records(BATCH // 5)]
            for table in self.entry_tables:
                app = self.apps[table.name]
                seconds[table.name].append(timed(in_namespace, app, insert_mixed, table, app, batch))
            app = self.apps["per_type"]
            seconds["per_type"].append(timed(in_namespace, app, self.insert_table_by_table, app, batch))
        for name, values in seconds.items():
            self.report.add(name, "insert.5_types_a_batch", statistics.mean(values) / BATCH * 1e6, "us/row", types)
        size = self.one("SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname ~ '^type[0-9]+$'")
        main = self.one(f"SELECT pg_total_relation_size('per_type.type{MAIN_TYPE}')")
        self.report.add("per_type", "storage.small_types", float(size - main) / types / 100, "bytes/row", types)
        self.admin.execute("ANALYZE")
        for name in self.apps:  # new sessions: nothing of any type is cached yet
            self.apps[name] = self.connect("app")
        at = self.rng.sample(numbers, min(300, types))
        for visit in ("first_visit", "second_visit"):
            queries = {layout.name: [layout.page(type_, "AF", 0.0) for type_ in at] for layout in self.layouts}
            for name, milliseconds in self.interleave(queries).items():
                self.report.add_percentiles(name, f"many_types.page.{visit}", milliseconds, types)
        for name, app in self.apps.items():
            row = app.execute("SELECT sum(total_bytes) / 1e6 FROM pg_backend_memory_contexts").fetchone()
            assert row is not None
            self.report.add(name, f"session_memory.{len(at)}_types", float(row[0]), "MB", types)

    def insert_table_by_table(self, app: Connection, batch: Sequence[tuple[int, Record]]) -> None:
        for type_ in sorted({type_ for type_, _ in batch}):
            self.per_type.insert(app, type_, [row for of, row in batch if of == type_])


def insert_mixed(table: OneTable, app: Connection, batch: Sequence[tuple[int, Record]]) -> None:
    table.insert_entities(app, batch)
    table.insert_entries(app, batch)


def set_namespace(app: Connection) -> None:
    app.execute("SELECT set_config('app.namespace', %s, true)", (NAMESPACE,), prepare=True)


def in_namespace(app: Connection, action: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    """One durable transaction, scoped to the namespace."""
    with app.transaction():
        set_namespace(app)
        action(*args, **kwargs)


def run(app: Connection, query: Query, *, prepare: bool) -> float:
    """Milliseconds until all rows are here."""
    start = time.perf_counter()
    app.execute(*query, prepare=prepare, binary=True).fetchall()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entities", type=int, default=100_000, help="of the one large type; a multiple of 5000")
    parser.add_argument("--types", type=int, default=200, help="small types of 100 entities each")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped and its folder removed
    with throwaway_postgres(SETTINGS) as conninfo:
        bench = Bench(conninfo, arguments.seed)
        version = bench.one("SHOW server_version")
        machine = {"cpus": os.cpu_count(), "postgres": version, "load_before": os.getloadavg()[0]}
        print(json.dumps({"name": "machine", **machine}), flush=True)
        with stage("load_and_read"):
            bench.load(arguments.entities)
        with stage("variants"):
            bench.row_security_and_indexes(arguments.entities)
            bench.policy_cost(arguments.entities)
            bench.density(arguments.entities)
            bench.split_insert(arguments.entities)
            bench.updates(arguments.entities)
            bench.fillfactors()
        with stage("many_types"):
            bench.many_types(arguments.types)
            report_waits(bench.report, bench.admin, conninfo)
    print(json.dumps({"name": "load_after", "value": os.getloadavg()[0], "unit": ""}))
    print(bench.report.table([layout.name for layout in bench.layouts]))


if __name__ == "__main__":
    main()
