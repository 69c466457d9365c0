"""What of a namespace a feed is about, as keyword arguments and on the wire."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from google.protobuf.duration_pb2 import Duration
from strandline.stream.v1 import stream_service_pb2


class SelectionArguments(TypedDict, total=False):
    """Keyword arguments of everything that opens a feed; what is left out asks for everything."""

    types: Sequence[str]
    ids: Sequence[str]
    """Only these entities, ``{type}/{id}`` each; not together with ``types``."""
    filter: str
    read_mask: Sequence[str]
    """Only these fields of ``data``."""
    include_previous: bool
    progress_seconds: int
    """1 to 5: how often a feed that has nothing to say moves on."""


def selects_everything(selection: SelectionArguments) -> bool:
    """Whether every revision comes."""
    return not (selection.get("types") or selection.get("ids") or selection.get("filter"))


def fill(request: stream_service_pb2.WatchRequest, selection: SelectionArguments) -> None:
    """Put *selection* into *request*."""
    request.types.extend(selection.get("types", ()))
    request.ids.extend(selection.get("ids", ()))
    request.filter = selection.get("filter", "")
    request.read_mask.extend(selection.get("read_mask", ()))
    if "include_previous" in selection:
        request.include_previous = selection["include_previous"]
    if "progress_seconds" in selection:
        request.progress_interval.CopyFrom(Duration(seconds=selection["progress_seconds"]))


def parameters(selection: SelectionArguments) -> list[tuple[str, str]]:
    """The same as parameters of a URL."""
    query = [("types", type_id) for type_id in selection.get("types", ())]
    query += [("ids", entity_id) for entity_id in selection.get("ids", ())]
    if filter := selection.get("filter"):
        query.append(("filter", filter))
    query += [("read_mask", field) for field in selection.get("read_mask", ())]
    if "include_previous" in selection:
        query.append(("include_previous", "true" if selection["include_previous"] else "false"))
    if "progress_seconds" in selection:
        query.append(("progress_interval", f"{selection['progress_seconds']}s"))
    return query
