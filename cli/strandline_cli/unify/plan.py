"""Plans: a YAML file, checked before anything is read."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import yaml

from strandline_cli import names

MODES: Final = ("insert", "upsert", "replace-set")
_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_PLACEHOLDER: Final = re.compile(r"\{([^{}.]+)\.([^{}]+)\}")


class PlanError(Exception):
    """The plan cannot be carried out; the message says where and why."""


@dataclass(frozen=True, slots=True)
class Source:
    """A select over files, which it calls ``$name``, or on a PostgreSQL database. ``key`` names a row."""

    name: str
    sql: str
    key: str
    files: Mapping[str, Path]
    postgresql: str = ""


@dataclass(frozen=True, slots=True)
class Exact:
    """The same values in all *fields*; ``normalized``: but for case, accents, spaces and punctuation."""

    fields: tuple[str, ...]
    normalized: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        return self.fields

    @property
    def margin(self) -> float:
        return 0.0

    def __str__(self) -> str:
        return f"{'normalized' if self.normalized else 'exact'} {', '.join(self.fields)}"


@dataclass(frozen=True, slots=True)
class Nearest:
    """Positions in degrees within *within* km; one that is less than *margin* km farther is a rival."""

    latitude: str
    longitude: str
    within: float
    margin: float

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.latitude, self.longitude)

    def __str__(self) -> str:
        return f"nearest within {self.within:g} km"


@dataclass(frozen=True, slots=True)
class Similar:
    """Jaro-Winkler similarity of *field* of at least *threshold*, and the same values in *same*."""

    field: str
    threshold: float
    margin: float
    same: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.field, *self.same)

    def __str__(self) -> str:
        return f"similar {self.field}"


MatchRule: TypeAlias = Exact | Nearest | Similar


@dataclass(frozen=True, slots=True)
class MergeRule:
    """Where *fields* come from, together: from the first source in *prefer* that has them all, from the row with the
    largest *newest*, or (*all*) an array of what every source has.

    Sources that differ by more than *tolerance* (None: nobody asks) are reported.
    """

    fields: tuple[str, ...]
    prefer: tuple[str, ...]
    newest: str = ""
    all: bool = False
    tolerance: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to make of what. ``ids`` are templates of the id, the first that can be filled in counts."""

    type: str
    namespace: str
    mode: str
    sources: tuple[Source, ...]
    match: tuple[MatchRule, ...]
    merge: tuple[MergeRule, ...]
    omit: frozenset[str]
    sources_field: str
    ids: tuple[str, ...]


def placeholders(template: str) -> list[tuple[str, str]]:
    """The (source, column) pairs in an id template."""
    return _PLACEHOLDER.findall(template)


def fill_in(template: str, value: Any) -> str:
    """*template* with each placeholder replaced by what *value* says of (source, column)."""
    return _PLACEHOLDER.sub(lambda match: str(value(match[1], match[2])), template)


def read_plan(path: Path) -> Plan:
    """The plan in a file; paths in it are relative to its folder, and may name environment variables.

    Raises:
        PlanError: it is none.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as failure:
        raise PlanError(f"is no YAML: {failure}") from None
    plan = _Node(document, "").mapping(
        {"type", "sources", "id"}, {"namespace", "mode", "match", "merge", "omit", "sources_field"}
    )
    sources = tuple(_source(node, path.parent) for node in plan["sources"].items())
    source_names = tuple(source.name for source in sources)
    if len(set(source_names)) < len(source_names):
        raise plan["sources"].wrong("two sources have the same name")
    for source in sources:
        if not _NAME.fullmatch(source.name):
            raise plan["sources"].wrong(f"the name {source.name!r} must match {_NAME.pattern}")
    mode = plan["mode"].text() if "mode" in plan else "upsert"
    if mode not in MODES:
        raise plan["mode"].wrong(f"must be one of {', '.join(MODES)}")
    ids = tuple(plan["id"].texts())
    for template in ids:
        found = placeholders(template)
        if not found:
            raise plan["id"].wrong(f"{template!r} has no placeholder like {{source.column}}")
        if unknown := {name for name, _ in found} - set(source_names):
            raise plan["id"].wrong(f"there is no source {min(unknown)!r}")
    return Plan(
        plan["type"].name(names.TYPE),
        plan["namespace"].name(names.NAMESPACE) if "namespace" in plan else "",
        mode,
        sources,
        tuple(_match_rule(node) for node in plan["match"].items()) if "match" in plan else (),
        tuple(_merge_rule(node, source_names) for node in plan["merge"].items()) if "merge" in plan else (),
        frozenset(plan["omit"].texts()) if "omit" in plan else frozenset(),
        plan["sources_field"].text() if "sources_field" in plan else "_sources",
        ids,
    )


class _Node:
    """A value of the document and where it stands, for errors that say so."""

    def __init__(self, value: Any, where: str) -> None:
        self.value = value
        self.where = where

    def wrong(self, text: str) -> PlanError:
        return PlanError(f"{self.where or 'the plan'}: {text}")

    def mapping(self, required: set[str], optional: set[str]) -> dict[str, _Node]:
        if not isinstance(self.value, dict):
            raise self.wrong(f"must be a mapping with the keys {', '.join(sorted(required | optional))}")
        for key in self.value:
            if key not in required | optional:
                raise self.wrong(f"unknown key {key!r}; there are {', '.join(sorted(required | optional))}")
        for key in sorted(required - self.value.keys()):
            raise self.wrong(f"the key {key!r} is missing")
        return {key: _Node(value, f"{self.where}.{key}".lstrip(".")) for key, value in self.value.items()}

    def items(self) -> Iterator[_Node]:
        if not isinstance(self.value, list) or not self.value:
            raise self.wrong("must be a list that is not empty")
        for place, value in enumerate(self.value):
            yield _Node(value, f"{self.where}[{place}]")

    def text(self) -> str:
        if isinstance(self.value, (bool, int, float, datetime.date)):
            raise self.wrong(f"YAML takes it for {self.value!r}: write it in quotes")
        if not isinstance(self.value, str) or not self.value:
            raise self.wrong("must be a string that is not empty")
        return self.value

    def name(self, pattern: re.Pattern[str]) -> str:
        try:
            return names.check(self.text(), pattern)
        except ValueError as failure:
            raise self.wrong(str(failure)) from None

    def texts(self) -> Sequence[str]:
        """One string, or a list of them."""
        return [self.text()] if isinstance(self.value, str) else [node.text() for node in self.items()]

    def number(self) -> float:
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)) or not self.value >= 0:
            raise self.wrong("must be a number that is not negative")
        return float(self.value)


def _source(node: _Node, folder: Path) -> Source:
    keys = node.mapping({"name", "sql", "key"}, {"files", "postgresql"})
    files = {}
    if "files" in keys:
        if "postgresql" in keys:
            raise node.wrong("reads files or a database, not both")
        named = keys["files"].value
        for name, value in keys["files"].mapping(set(), set(named) if isinstance(named, dict) else set()).items():
            path = folder / _expanded(value)
            if not path.is_file():
                raise value.wrong(f"there is no file {path}")
            files[name] = path
    url = _expanded(keys["postgresql"]) if "postgresql" in keys else ""
    return Source(keys["name"].text(), keys["sql"].text(), keys["key"].text(), files, url)


def _expanded(node: _Node) -> str:
    """The text of *node* with ``${NAME}`` replaced from the environment."""
    text = os.path.expandvars(node.text())
    if missing := re.search(r"\$\{?(\w+)", text):
        raise node.wrong(f"the environment has no {missing[1]}")
    return text


def _match_rule(node: _Node) -> MatchRule:
    rule = node.mapping(set(), {"exact", "normalized", "nearest", "similar"})
    if len(rule) != 1:
        raise node.wrong("must be one of exact, normalized, nearest, similar")
    ((kind, value),) = rule.items()
    if kind in ("exact", "normalized"):
        return Exact(tuple(value.texts()), kind == "normalized")
    if kind == "nearest":
        keys = value.mapping({"latitude", "longitude", "within_km"}, {"margin_km"})
        within = keys["within_km"].number()
        if not 0 < within <= 1000:
            raise keys["within_km"].wrong("must be above 0 and at most 1000")
        margin = keys["margin_km"].number() if "margin_km" in keys else within
        return Nearest(keys["latitude"].text(), keys["longitude"].text(), within, margin)
    keys = value.mapping({"field", "threshold"}, {"margin", "same"})
    threshold = keys["threshold"].number()
    if not 0.5 <= threshold <= 1:
        raise keys["threshold"].wrong("must be between 0.5 and 1")
    margin = keys["margin"].number() if "margin" in keys else 0.05
    return Similar(keys["field"].text(), threshold, margin, tuple(keys["same"].texts()) if "same" in keys else ())


def _merge_rule(node: _Node, sources: tuple[str, ...]) -> MergeRule:
    keys = node.mapping({"fields"}, {"prefer", "newest", "all", "tolerance"})
    if len({"prefer", "newest", "all"} & keys.keys()) > 1:
        raise node.wrong("prefer, newest and all exclude each other")
    fields = tuple(keys["fields"].texts())
    prefer = tuple(keys["prefer"].texts()) if "prefer" in keys else sources
    if unknown := set(prefer) - set(sources):
        raise keys["prefer"].wrong(f"there is no source {min(unknown)!r}")
    keep_all = "all" in keys
    if keep_all and (keys["all"].value is not True or len(fields) > 1):
        raise keys["all"].wrong("must be true, for one field")
    return MergeRule(
        fields,
        # A source that is not named comes last.
        (*prefer, *(name for name in sources if name not in prefer)),
        keys["newest"].text() if "newest" in keys else "",
        keep_all,
        keys["tolerance"].number() if "tolerance" in keys else None,
    )
