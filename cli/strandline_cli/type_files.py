"""Types in a file: what ``strandline export`` writes beside its rows, and ``strandline declare`` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from strandline.entity.v1 import entity_pb2

from strandline_cli import names
from strandline_cli.api import Api, ApiError

_NOT_DECLARED = {field_behavior_pb2.OUTPUT_ONLY, field_behavior_pb2.IDENTIFIER}


class TypeFileError(Exception):
    """The file holds no types; the message says why."""


def declaration(type_: entity_pb2.EntityType) -> dict[str, Any]:
    """What declares *type_* elsewhere: ``{"type": id, "schema": ..., ...}``."""
    declared = _declared(json_format.MessageToDict(type_), entity_pb2.EntityType.DESCRIPTOR)
    declared.pop("etag", None)
    return {"type": type_.name.rsplit("/", 1)[1], **declared}


def _declared(value: dict[str, Any], descriptor: Descriptor) -> dict[str, Any]:
    """*value* without what only the service writes."""
    kept = {}
    for field in descriptor.fields:
        behaviours = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
        if field.json_name not in value or not _NOT_DECLARED.isdisjoint(behaviours):
            continue
        content = value[field.json_name]
        inner = field.message_type
        if inner is not None and inner.file.package.startswith("strandline."):
            content = [_declared(item, inner) for item in content] if field.is_repeated else _declared(content, inner)
        kept[field.json_name] = content
    return kept


def write_types(path: Path, types: Iterable[entity_pb2.EntityType]) -> None:
    """Write the declarations of *types* as JSON lines."""
    lines = [json.dumps(declaration(type_), ensure_ascii=False, sort_keys=True) + "\n" for type_ in types]
    path.write_text("".join(lines), encoding="utf-8")


def read_types(path: Path) -> list[dict[str, Any]]:
    """The declarations in *path*.

    Raises:
        TypeFileError: a line is none.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            found.append({"type": row["type"], "schema": row["schema"], **row})
        except (ValueError, KeyError, TypeError):
            raise TypeFileError(f'line {number} is no JSON object {{"type", "schema", ...}}') from None
        try:
            names.check(str(row["type"]), names.TYPE)
        except ValueError as failure:
            raise TypeFileError(f"line {number}: the type {failure}") from None
    return found


@dataclass(frozen=True, slots=True)
class Declared:
    """Ids of types: made now, there already, and of both those whose references were added now."""

    made: Sequence[str]
    there: Sequence[str]
    referring: Sequence[str]


def declare(api: Api, namespace: str, declarations: Sequence[dict[str, Any]], *, references: bool = True) -> Declared:
    """Declare the types that *namespace* does not have yet, then the references that its types lack.

    In this order types may refer to each other in a circle. Without *references* rows can come in any order, too: they
    are declared when everything is there, and what dangles then makes them FAILED.

    Raises:
        ApiError: one cannot be declared.
    """
    made, there, referring = [], [], []
    for row in declarations:
        body = {key: value for key, value in row.items() if key not in ("type", "references")}
        try:
            api.call("POST", f"/v1/namespaces/{namespace}/types?type_id={row['type']}", body)
            made.append(row["type"])
        except ApiError as problem:
            if problem.reason != "ALREADY_EXISTS":
                raise
            there.append(row["type"])
    for row in declarations if references else ():
        path = f"/v1/namespaces/{namespace}/types/{row['type']}"
        if row.get("references") and not api.call("GET", path)["references"]:
            api.call("PATCH", path, {"references": row["references"]})
            referring.append(row["type"])
    return Declared(made, there, referring)
