"""The SQL of types and of the work on their indexes. See ``store`` for the rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Final, LiteralString

import orjson

from services.entity.index_keys import IndexSpec, parse_index_field
from services.entity.model import EntityType, Index, IndexState, OnDelete, Reference
from services.runtime.database import Row, Statement, packed_bool, packed_int8, packed_text
from services.runtime.filters.paths import parse_path
from services.runtime.wire import JsonObject

_STEP_BYTES: Final = 2**22
"""Of entities that are looked at in one step, some of which hold a lock meanwhile."""


def select_types(namespace: str, generations: Mapping[str, int]) -> Statement:
    """Rows for ``type_of`` of the types named that exist; without content where the generation is the given one."""
    return Statement(
        """SELECT k.id, t.generation, n.schema_version, n.compatibility, n.schema, n.indexes, n.revision,
            n.create_time, n.update_time, n.reference_fields, n.referrers
        FROM unnest(%s::text[], %s::int8[]) AS k (id, generation)
        CROSS JOIN LATERAL (SELECT generation FROM types WHERE namespace = %s AND id = k.id LIMIT 1) t
        LEFT JOIN LATERAL (SELECT schema_version, compatibility, schema::text, indexes::text, revision, create_time,
                update_time, reference_fields::text, referrers
            FROM types WHERE namespace = %s AND id = k.id AND generation <> k.generation LIMIT 1) n ON true""",
        (packed_text(generations), packed_int8(generations.values()), namespace, namespace),
    )


def type_of(row: Row) -> EntityType | None:
    """The type in a row of ``select_types`` or ``select_type_page``; None if it has no content."""
    type_id, generation, schema_version, compatibility, schema, indexes, revision, created, updated, references, by = (
        row
    )
    if schema is None:
        return None
    return EntityType(
        type_id,
        generation,
        schema_version,
        compatibility,
        orjson.loads(schema),
        tuple(map(_decode_index, orjson.loads(indexes))),
        revision,
        created,
        updated,
        tuple(map(_decode_reference, orjson.loads(references))),
        tuple(by),
    )


def _decode_reference(stored: JsonObject) -> Reference:
    return Reference(
        index_id=stored["id"],
        field=stored["field"],
        path=parse_path(stored["field"], field="type.references"),
        type=stored["type"],
        on_delete=OnDelete(stored["onDelete"]),
        state=IndexState(stored["state"]),
        failure=stored["failure"],
        failed_names=tuple(stored["failedNames"]),
    )


def encode_references(references: Sequence[Reference]) -> str:
    """JSON of *references*."""
    return orjson.dumps(
        [
            {
                "id": reference.index_id,
                "field": reference.field,
                "type": reference.type,
                "onDelete": reference.on_delete,
                "state": reference.state,
                "failure": reference.failure,
                "failedNames": reference.failed_names,
            }
            for reference in references
        ]
    ).decode()


def _decode_index(stored: JsonObject) -> Index:
    fields = tuple(
        parse_index_field(text, array=array) for text, array in zip(stored["fields"], stored["arrays"], strict=True)
    )
    return Index(
        id=stored["id"],
        fields=tuple(stored["fields"]),
        spec=IndexSpec(fields, stored["unique"], stored.get("fullText", False)),
        state=IndexState(stored["state"]),
        failure=stored["failure"],
        failed_names=tuple(stored["failedNames"]),
    )


def encode_indexes(indexes: Sequence[Index]) -> str:
    """JSON of *indexes*. Which fields are arrays is kept, because it is what the keys were made by."""
    return orjson.dumps(
        [
            {
                "id": index.id,
                "fields": index.fields,
                "arrays": [field.array for field in index.spec.fields],
                "unique": index.spec.unique,
                "fullText": index.spec.full_text,
                "state": index.state,
                "failure": index.failure,
                "failedNames": index.failed_names,
            }
            for index in indexes
        ]
    ).decode()


def select_type_page(namespace: str, after: str, limit: int, max_bytes: int) -> Statement:
    """Rows (how many of *limit* there are, a row for ``type_of``) after the id *after*, up to *max_bytes*."""
    return Statement(
        """SELECT there, id, generation, schema_version, compatibility, schema, indexes, revision, create_time,
            update_time, reference_fields, referrers
        FROM (SELECT *, sum(octet_length(schema) + octet_length(indexes)) OVER (ORDER BY id) AS bytes,
                row_number() OVER (ORDER BY id) AS position, count(*) OVER () AS there
            FROM (SELECT id, generation, schema_version, compatibility, schema::text, indexes::text, revision,
                    create_time, update_time, reference_fields::text, referrers
                FROM types WHERE namespace = %s AND id > %s ORDER BY id LIMIT %s) page) sized
        WHERE position = 1 OR bytes <= %s ORDER BY id""",
        (namespace, after, limit, max_bytes),
    )


def select_populated(namespace: str, type_ids: Sequence[str]) -> Statement:
    """Rows (type, whether it has any entity, whether it has a live one)."""
    return Statement(
        """SELECT k.id, EXISTS (SELECT FROM entities WHERE namespace = %s AND type = k.id),
            EXISTS (SELECT FROM entities WHERE namespace = %s AND type = k.id AND delete_time IS NULL)
        FROM unnest(%s::text[]) AS k (id)""",
        (namespace, namespace, packed_text(type_ids)),
    )


def select_schemas(namespace: str, type_ids: Sequence[str]) -> Statement:
    """Rows (type, schema) of all versions of those types, oldest first."""
    return Statement(
        """SELECT k.id, v.schema FROM unnest(%s::text[]) AS k (id)
        CROSS JOIN LATERAL (SELECT schema_version, schema::text FROM type_versions
            WHERE namespace = %s AND type = k.id OFFSET 0) v ORDER BY k.id, v.schema_version""",
        (packed_text(type_ids), namespace),
    )


def select_versions(namespace: str, type_id: str, after: int, limit: int, max_bytes: int) -> Statement:
    """Rows (how many of *limit* there are, version, schema) after the version *after*, up to *max_bytes*."""
    return Statement(
        """SELECT there, schema_version, schema
        FROM (SELECT *, sum(octet_length(schema)) OVER (ORDER BY schema_version) AS bytes,
                row_number() OVER (ORDER BY schema_version) AS position, count(*) OVER () AS there
            FROM (SELECT schema_version, schema::text FROM type_versions
                WHERE namespace = %s AND type = %s AND schema_version > %s ORDER BY schema_version LIMIT %s) page) sized
        WHERE position = 1 OR bytes <= %s ORDER BY schema_version""",
        (namespace, type_id, after, limit, max_bytes),
    )


def select_live(namespace: str, type_id: str, after_id: str, limit: int) -> Statement:
    """Rows as those of ``select_unindexed`` of the next live entities."""
    return _select_next(" AND delete_time IS NULL", namespace, type_id, after_id, limit)


def allocate_index_ids(count: int) -> Statement:
    """Rows (id) of *count* index ids that nothing else has."""
    return Statement("SELECT nextval('index_ids') FROM generate_series(1, %s)", (count,))


def put_type(namespace: str, type_: EntityType) -> Statement:
    """Store *type_*; its generation is given by the database."""
    return Statement(
        """INSERT INTO types (namespace, id, schema_version, compatibility, schema, indexes, reference_fields, revision,
            create_time, update_time)
        VALUES (%s, %s, %s, %s, %s::json, %s::json, %s::json, %s, %s, %s)
        ON CONFLICT (namespace, id) DO UPDATE SET generation = nextval('type_generations'),
            schema_version = excluded.schema_version, compatibility = excluded.compatibility,
            schema = excluded.schema, indexes = excluded.indexes, reference_fields = excluded.reference_fields,
            revision = excluded.revision, update_time = excluded.update_time""",
        (
            namespace,
            type_.id,
            type_.schema_version,
            type_.compatibility,
            _json(type_.schema),
            encode_indexes(type_.indexes),
            encode_references(type_.references),
            type_.revision,
            type_.create_time,
            type_.update_time,
        ),
    )


def put_schema_version(namespace: str, type_: EntityType) -> Statement:
    """Keep the schema of *type_* as one of its versions."""
    return Statement(
        """INSERT INTO type_versions (namespace, type, schema_version, schema) VALUES (%s, %s, %s, %s::json)
        ON CONFLICT DO NOTHING""",
        (namespace, type_.id, type_.schema_version, _json(type_.schema)),
    )


def remove_type(namespace: str, type_id: str) -> list[Statement]:
    """Remove a type and its versions."""
    return [
        Statement("DELETE FROM types WHERE namespace = %s AND id = %s", (namespace, type_id)),
        Statement("DELETE FROM type_versions WHERE namespace = %s AND type = %s", (namespace, type_id)),
    ]


def put_states(namespace: str, type_: EntityType) -> Statement:
    """Change what is known of a type's indexes and references, without a revision."""
    return Statement(
        """UPDATE types SET indexes = %s::json, reference_fields = %s::json, generation = nextval('type_generations')
        WHERE namespace = %s AND id = %s""",
        (encode_indexes(type_.indexes), encode_references(type_.references), namespace, type_.id),
    )


def put_referrer(namespace: str, type_id: str, before: Set[str], now: Set[str]) -> Statement:
    """Tell types that *type_id*, which referred to the types *before*, refers to those of *now*."""
    return Statement(
        """UPDATE types SET generation = nextval('type_generations'),
            referrers = CASE WHEN id = ANY (%s::text[]) THEN array_append(referrers, %s)
                ELSE array_remove(referrers, %s) END
        WHERE namespace = %s AND id = ANY (%s::text[])""",
        (packed_text(now), type_id, type_id, namespace, packed_text(before ^ now)),
    )


def _json(value: JsonObject) -> str:
    return orjson.dumps(value).decode()


# Work on indexes


def put_jobs(namespace: str, type_id: str, jobs: Sequence[tuple[int, bool]]) -> Statement:
    """Leave work on the indexes in *jobs*: (id, whether its entries are to be removed, else filled)."""
    index_ids, removing = zip(*jobs, strict=True)
    return Statement(
        """INSERT INTO index_jobs (namespace, type, index_id, removing)
        SELECT %s, %s, * FROM unnest(%s::int8[], %s::bool[])
        ON CONFLICT (namespace, index_id) DO UPDATE SET removing = excluded.removing, after_id = ''""",
        (namespace, type_id, packed_int8(index_ids), packed_bool(removing)),
    )


def select_jobs() -> Statement:
    """Rows (namespace, index id) of all the work there is."""
    return Statement("SELECT namespace, index_id FROM index_jobs ORDER BY namespace, index_id")


def select_job(namespace: str, index_id: int) -> Statement:
    """The row (type, removing, after id) of one piece of work, if it is still to be done."""
    return Statement(
        "SELECT type, removing, after_id FROM index_jobs WHERE namespace = %s AND index_id = %s",
        (namespace, index_id),
    )


def advance_job(namespace: str, index_id: int, after_id: str, indexed: int) -> Statement:
    """Go on after *after_id*; *indexed* more live entities are in the index."""
    return Statement(
        "UPDATE index_jobs SET after_id = %s, indexed = indexed + %s WHERE namespace = %s AND index_id = %s",
        (after_id, indexed, namespace, index_id),
    )


def select_progress(namespace: str) -> Statement:
    """Rows (index id, live entities in it so far, live entities of its type) of the indexes that are being filled."""
    return Statement(
        """SELECT j.index_id, j.indexed, coalesce(u.entities, 0)
        FROM (SELECT index_id, type, indexed FROM index_jobs
            WHERE namespace = %s AND NOT removing) j
        LEFT JOIN LATERAL (SELECT entities FROM usage WHERE namespace = %s AND type = j.type LIMIT 1) u ON true""",
        (namespace, namespace),
    )


def finish_job(namespace: str, index_id: int) -> Statement:
    return Statement("DELETE FROM index_jobs WHERE namespace = %s AND index_id = %s", (namespace, index_id))


def select_unindexed(namespace: str, type_id: str, after_id: str, limit: int) -> Statement:
    """Rows (how many of *limit* there are, id, whether it is deleted, data) of the next entities to index.

    At least one if there is one; the others as far as they are 4 MiB together.
    """
    return _select_next("", namespace, type_id, after_id, limit)


def _select_next(which: LiteralString, namespace: str, type_id: str, after_id: str, limit: int) -> Statement:
    return Statement(
        f"""SELECT there, id, deleted, data::text
        FROM (SELECT id, deleted, data, sum(size) OVER (ORDER BY id) AS bytes,
                row_number() OVER (ORDER BY id) AS position, count(*) OVER () AS there
            FROM (SELECT id, delete_time IS NOT NULL AS deleted, data, octet_length(message) AS size FROM entities
                WHERE namespace = %s AND type = %s AND id > %s{which} ORDER BY id LIMIT %s) page) sized
        WHERE position = 1 OR bytes <= %s ORDER BY id""",  # noqa: S608
        (namespace, type_id, after_id, limit, _STEP_BYTES),
    )


def remove_entries(namespace: str, index_id: int, limit: int) -> Statement:
    """Remove up to *limit* entries of an index; one row for each."""
    return Statement(
        """DELETE FROM index_entries WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM index_entries WHERE namespace = %s AND index_id = %s LIMIT %s))
        RETURNING 1""",
        (namespace, index_id, limit),
    )
