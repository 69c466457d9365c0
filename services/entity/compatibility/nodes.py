"""A JSON Schema document as the checker sees it: nodes with keywords of one internal form.

2020-12 is the internal form; draft-07 (and 06, 04) is translated while it is read: ``items`` arrays and
``additionalItems``, ``dependencies``, ``definitions``, ``$id`` as an anchor, ``$ref`` that hides its neighbours, and
boolean ``exclusiveMinimum``. Annotations are left out, ``format`` and ``content*`` among them: they validate nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import unquote, urljoin

Pointer: TypeAlias = tuple[str, ...]
Key: TypeAlias = "str | int | tuple[str, str] | None"

MAX_DEPTH: Final = 200
KINDS: Final = ("null", "boolean", "number", "string", "array", "object")
_LEGACY: Final = ("draft-03/", "draft-04/", "draft-06/", "draft-07/")
_MODERN: Final = "json-schema.org/draft/2020-12/"
_NUMBER: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_STRING: Final = ("minLength", "maxLength", "pattern")
_ARRAY: Final = (
    *("prefixItems", "items", "contains", "minContains", "maxContains"),
    *("minItems", "maxItems", "uniqueItems", "unevaluatedItems"),
)
_OBJECT: Final = (
    *("properties", "patternProperties", "additionalProperties", "unevaluatedProperties", "propertyNames"),
    *("required", "dependentRequired", "dependentSchemas", "minProperties", "maxProperties"),
)
_KIND_OF: Final[Mapping[str, str]] = {
    **dict.fromkeys(_NUMBER, "number"),
    **dict.fromkeys(_STRING, "string"),
    **dict.fromkeys(_ARRAY, "array"),
    **dict.fromkeys(_OBJECT, "object"),
}
_LISTS: Final = frozenset(("allOf", "anyOf", "oneOf"))
_MAPS: Final = frozenset(("properties", "patternProperties"))
_ONE: Final = frozenset(
    (
        *("not", "if", "then", "else", "contains", "propertyNames"),
        *("additionalProperties", "unevaluatedProperties", "unevaluatedItems"),
    )
)
_COUNTS: Final = frozenset(
    f"{end}{what}" for end in ("min", "max") for what in ("Length", "Items", "Properties", "Contains")
)


class NotASchema(Exception):
    """What was given is no JSON Schema that can be compared; *pointer* leads to the place."""

    def __init__(self, pointer: Pointer, message: str) -> None:
        super().__init__(message)
        self.pointer = pointer_text(pointer)
        self.message = message


class Part(NamedTuple):
    """One thing that a schema demands, which can be met or violated by itself: a keyword, or one *key* of it."""

    keyword: str
    key: Key = None

    @property
    def kind(self) -> str | None:
        """The kind of values that it is about; None: any."""
        return _KIND_OF.get(self.keyword)


class Node:
    """One (sub)schema. ``keywords`` hold nodes where a keyword holds schemas; nothing in them if it is a boolean.

    ``same`` is equal for nodes, of all documents, that say the same; ``same_keyword`` likewise for single keywords that
    mean the same wherever they stand. ``spelling`` says how the document writes a keyword, where that is another way.
    """

    __slots__ = (
        *("_listed", "_parts", "document", "evaluated", "keywords", "pointer", "same", "same_keyword"),
        *("spelling", "value"),
    )

    def __init__(self, document: Document, pointer: Pointer) -> None:
        self.document = document
        self.pointer = pointer
        self.value = True
        self.keywords: dict[str, Any] = {}
        self.spelling: dict[str, str] = {}
        self.same = -1
        self.same_keyword: dict[Part, int] = {}
        self.evaluated: dict[Any, Any] = {}
        """What ``evaluated`` has found out about the node: it looks at all that is applied in place."""
        self._listed: dict[str, dict[Any, Any]] = {}
        self._parts: dict[str, tuple[Part, ...]] = {}

    def said(self, keyword: str) -> Any:
        """What the keyword says; None if the node does not have it."""
        return self.keywords.get(keyword)

    @property
    def target(self) -> Node:
        """What ``$ref`` leads to."""
        return self.document.resolve(self)

    def listed(self, keyword: str) -> dict[Any, Any]:
        """The values of ``enum`` or ``const`` by their ``value_key``."""
        if keyword not in self._listed:
            self._listed[keyword] = {value_key(value): value for value in self.keywords[keyword]}
        return self._listed[keyword]

    def parts(self, kind: str) -> tuple[Part, ...]:
        """What the node demands of values of *kind*, beside their type and the booleans."""
        if kind not in self._parts:
            self._parts[kind] = tuple(self._demands(kind))
        return self._parts[kind]

    def _demands(self, kind: str) -> Iterator[Part]:
        for keyword, value in self.keywords.items():
            if _KIND_OF.get(keyword, kind) != kind:
                continue
            if keyword in ("properties", "patternProperties"):
                yield from (Part(keyword, name) for name in value)
            elif keyword in ("prefixItems", "allOf", "dependentSchemas"):
                yield from (Part(keyword, place) for place in range(len(value)))
            elif keyword == "required":
                yield from (Part(keyword, name) for name in value)
            elif keyword == "dependentRequired":
                yield from (Part(keyword, pair) for pair in value)
            elif keyword == "contains":
                if self.keywords.get("minContains", 1) > 0:
                    yield Part("minContains")
                if "maxContains" in self.keywords:
                    yield Part("maxContains")
            elif keyword == "if":
                yield from (Part(branch) for branch in ("then", "else") if branch in self.keywords)
            elif keyword not in ("then", "else", "type", "minContains", "maxContains"):
                yield Part(keyword)


class Interner:
    """Numbers that are equal exactly for equal values."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def __call__(self, value: Any) -> int:
        return self._numbers.setdefault(value, len(self._numbers))


class Document:
    """A schema that was read. Raises ``NotASchema`` where it has not the shape of one."""

    def __init__(self, schema: object, interner: Interner) -> None:
        if _is_deep(schema):
            raise NotASchema((), f"the schema is nested more than {MAX_DEPTH} deep")
        self._root_value = schema
        self.visits = 0
        dialect = schema.get("$schema", "") if isinstance(schema, dict) else ""
        self._legacy = is_legacy(schema)
        if dialect and not self._legacy and (not isinstance(dialect, str) or _MODERN not in dialect):
            raise NotASchema(("$schema",), "the dialects that can be compared are 2020-12 and draft-07")
        base = schema.get("$id", "") if isinstance(schema, dict) else ""
        self.base = base if isinstance(base, str) else ""
        self._nodes: dict[Pointer, Node] = {}
        self._anchors: dict[str, Pointer] = {}
        self._unread: list[tuple[Node, Any]] = []
        self._targets: dict[Node, Node] = {}
        self.root = self._node((), schema)
        self._read_all()
        self._refuse_circles()
        self._intern(interner)

    def resolve(self, node: Node) -> Node:
        """See ``Node.target``."""
        return self._targets[node]

    def _node(self, pointer: Pointer, raw: Any) -> Node:
        if pointer not in self._nodes:
            self._nodes[pointer] = Node(self, pointer)
            self._unread.append((self._nodes[pointer], raw))
        return self._nodes[pointer]

    def _read_all(self) -> None:
        unresolved: list[Node] = []
        while self._unread or unresolved:
            while self._unread:
                node, raw = self._unread.pop()
                _Reader(node, self._legacy, self._node, self._anchors).read(raw)
                if "$ref" in node.keywords:
                    unresolved.append(node)
            # Anchors are known only now. What a reference leads to may not have been read as a schema yet.
            for node in unresolved:
                pointer = self._pointer_of(node)
                self._targets[node] = self._node(pointer, _at(self._root_value, pointer, node.pointer))
            unresolved = []

    def _pointer_of(self, node: Node) -> Pointer:
        reference = node.keywords["$ref"]
        if (known := self._anchors.get(reference)) is not None:
            return known
        base, _, fragment = reference.partition("#")
        start: Pointer | None = () if not base else self._anchors.get(base)
        if start is None or (fragment and not fragment.startswith("/")):
            raise NotASchema((*node.pointer, "$ref"), "a $ref may only lead inside the schema")
        parts = unquote(fragment).split("/")[1:]
        return (*start, *(part.replace("~1", "/").replace("~0", "~") for part in parts))

    def _refuse_circles(self) -> None:
        """No schema may be applied to a value because it is applied to that value."""
        done: set[Node] = set()
        for start in self._nodes.values():
            path: list[tuple[Node, Iterator[Node]]] = [(start, iter(_in_place(start)))] if start not in done else []
            open_nodes = {start}
            while path:
                node, following = path[-1]
                after = next(following, None)
                if after is None:
                    path.pop()
                    open_nodes.discard(node)
                    done.add(node)
                elif after in open_nodes:
                    raise NotASchema(node.pointer, "a reference leads back to itself for the same value")
                elif after not in done:
                    open_nodes.add(after)
                    path.append((after, iter(_in_place(after))))

    def _intern(self, interner: Interner) -> None:
        # A reference is the same only in documents whose references all lead to the same.
        targets = {
            (node.keywords["$ref"], value_key(_at(self._root_value, target.pointer, ())))
            for node, target in self._targets.items()
        }
        references = interner(frozenset(targets))
        for pointer in sorted(self._nodes, key=len, reverse=True):
            node = self._nodes[pointer]
            said = {name: _said(name, value, references) for name, value in node.keywords.items()}
            node.same = interner((node.value, frozenset(said.items())))
            for keyword in ("anyOf", "oneOf", "not", "propertyNames"):
                if keyword in said:
                    node.same_keyword[Part(keyword)] = interner((keyword, said[keyword]))
            if "contains" in said:
                for bound in ("minContains", "maxContains"):
                    node.same_keyword[Part(bound)] = interner((bound, said["contains"], said.get(bound)))
            for branch in ("then", "else"):
                if branch in said and "if" in said:
                    node.same_keyword[Part(branch)] = interner((branch, said["if"], said[branch]))
            for place, (key, schema) in enumerate(node.keywords.get("dependentSchemas", ())):
                node.same_keyword[Part("dependentSchemas", place)] = interner(("dependentSchemas", key, schema.same))


class _Reader:
    """Reads the keywords of one node."""

    def __init__(
        self, node: Node, legacy: bool, child: Callable[[Pointer, Any], Node], anchors: dict[str, Pointer]
    ) -> None:
        self._node = node
        self._legacy = legacy
        self._child = child
        self._anchors = anchors

    def read(self, raw: object) -> None:
        if isinstance(raw, bool):
            self._node.value = raw
            return
        if not isinstance(raw, dict):
            raise NotASchema(self._node.pointer, "a schema is an object or a boolean")
        self._name(raw)
        for definitions in ("$defs", "definitions"):
            for name in self._map(raw, definitions):
                self._sub(raw, definitions, name)
        if "$ref" in raw:
            if not isinstance(raw["$ref"], str):
                raise self._wrong("$ref", "is a string")
            self._node.keywords["$ref"] = raw["$ref"]
            if self._legacy:
                return
        if "$dynamicRef" in raw:
            raise self._wrong("$dynamicRef", "is not supported")
        for keyword in raw:
            self._keyword(raw, keyword)
        self._tidy(raw)

    def _name(self, raw: Mapping[str, Any]) -> None:
        """Remember what references may call the node."""
        identifier, anchor = raw.get("$id"), raw.get("$anchor")
        if isinstance(anchor, str):
            self._anchors.setdefault(f"#{anchor}", self._node.pointer)
        if isinstance(identifier, str):
            self._anchors.setdefault(identifier.rstrip("#") or "#", self._node.pointer)
            self._anchors.setdefault(urljoin(self._node.document.base, identifier).rstrip("#"), self._node.pointer)

    def _keyword(self, raw: Mapping[str, Any], keyword: str) -> None:
        value, keywords = raw[keyword], self._node.keywords
        if keyword in _ONE:
            keywords[keyword] = self._sub(raw, keyword)
        elif keyword in _LISTS:
            if not isinstance(value, list) or not value:
                raise self._wrong(keyword, "is a list of schemas, at least one")
            keywords[keyword] = self._list(value, keyword)
        elif keyword in _MAPS:
            keywords[keyword] = {name: self._sub(raw, keyword, name) for name in self._map(raw, keyword)}
        elif keyword in _NUMBER:
            if isinstance(value, bool) and self._legacy and keyword.startswith("exclusive"):
                return
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise self._wrong(keyword, "is a number")
            if keyword == "multipleOf" and value <= 0:
                raise self._wrong(keyword, "is above 0")
            keywords[keyword] = value
        elif keyword in _COUNTS:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value != int(value):
                raise self._wrong(keyword, "is a whole number, at least 0")
            keywords[keyword] = int(value)
        elif keyword == "type":
            keywords["type"] = self._types(value)
        elif keyword == "enum":
            if not isinstance(value, list):
                raise self._wrong(keyword, "is a list")
            keywords["enum"] = value
        elif keyword == "const":
            keywords["const"] = [value]
        elif keyword == "pattern":
            if not isinstance(value, str):
                raise self._wrong(keyword, "is a string")
            keywords["pattern"] = value
        elif keyword == "uniqueItems":
            if value is True:
                keywords["uniqueItems"] = True
        elif keyword == "required":
            keywords["required"] = self._names(value, keyword)
        elif keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
            self._dependencies(raw, keyword)
        elif keyword in ("items", "prefixItems", "additionalItems"):
            self._items(raw, keyword)

    def _types(self, value: object) -> frozenset[str]:
        names = [value] if isinstance(value, str) else value
        known = {*KINDS, "integer"}
        if not isinstance(names, list) or not names or any(name not in known for name in names):
            raise self._wrong("type", f"is one of {', '.join(sorted(known))}, or a list of them")
        return frozenset(names) - {"integer"} if "number" in names else frozenset(names)

    def _dependencies(self, raw: Mapping[str, Any], keyword: str) -> None:
        for name, value in self._map(raw, keyword).items():
            if isinstance(value, list) and keyword != "dependentSchemas":
                self._node.spelling["dependentRequired"] = keyword
                pairs = self._node.keywords.setdefault("dependentRequired", [])
                pairs += [(name, other) for other in self._names(value, keyword)]
            elif keyword != "dependentRequired":
                schemas = self._node.keywords.setdefault("dependentSchemas", [])
                schemas.append((name, self._sub(raw, keyword, name)))
            else:
                raise self._wrong(keyword, "holds lists of names")

    def _items(self, raw: Mapping[str, Any], keyword: str) -> None:
        value, tuples = raw[keyword], isinstance(raw.get("items"), list)
        if keyword == "items" and not (self._legacy and tuples):
            self._node.keywords["items"] = self._sub(raw, keyword)
        elif keyword == ("items" if self._legacy else "prefixItems"):
            if not isinstance(value, list):
                raise self._wrong(keyword, "is a list of schemas")
            self._node.keywords["prefixItems"] = self._list(value, keyword)
        elif keyword == "additionalItems" and self._legacy and tuples:
            self._node.keywords["items"] = self._sub(raw, keyword)

    def _tidy(self, raw: Mapping[str, Any]) -> None:
        """Drop what says nothing, so that schemas that mean the same look the same."""
        keywords = self._node.keywords
        if self._legacy:
            for end in ("Minimum", "Maximum"):
                if raw.get(f"exclusive{end}") is True and end.lower() in keywords:
                    keywords[f"exclusive{end}"] = keywords.pop(end.lower())
            for modern in ("minContains", "maxContains", "unevaluatedItems", "unevaluatedProperties"):
                keywords.pop(modern, None)
        for least in ("minLength", "minItems", "minProperties"):
            if keywords.get(least) == 0:
                del keywords[least]
        for keyword in ("required", "properties", "patternProperties", "prefixItems"):
            if keyword in keywords and not keywords[keyword]:
                del keywords[keyword]
        if "contains" not in keywords:
            keywords.pop("minContains", None)
            keywords.pop("maxContains", None)
        if "if" not in keywords:
            keywords.pop("then", None)
            keywords.pop("else", None)

    def _sub(self, raw: Mapping[str, Any], keyword: str, name: str | None = None) -> Node:
        if name is None:
            return self._child((*self._node.pointer, keyword), raw[keyword])
        return self._child((*self._node.pointer, keyword, name), raw[keyword][name])

    def _list(self, values: Sequence[Any], keyword: str) -> list[Node]:
        return [self._child((*self._node.pointer, keyword, str(place)), value) for place, value in enumerate(values)]

    def _map(self, raw: Mapping[str, Any], keyword: str) -> dict[str, Any]:
        value = raw.get(keyword, {})
        if not isinstance(value, dict):
            raise self._wrong(keyword, "is an object")
        return value

    def _names(self, value: object, keyword: str) -> list[str]:
        if not isinstance(value, list) or any(not isinstance(name, str) for name in value):
            raise self._wrong(keyword, "is a list of names")
        return list(dict.fromkeys(value))

    def _wrong(self, keyword: str, message: str) -> NotASchema:
        return NotASchema((*self._node.pointer, keyword), f"{keyword} {message}")


def is_legacy(schema: object) -> bool:
    """Whether *schema* names an earlier dialect than 2020-12."""
    dialect = schema.get("$schema") if isinstance(schema, dict) else None
    return isinstance(dialect, str) and any(name in dialect for name in _LEGACY)


def value_key(value: Any) -> Any:
    """Something hashable that is equal exactly for equal JSON values: 5 and 5.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return ("object", frozenset((name, value_key(item)) for name, item in value.items()))
    if isinstance(value, list):
        return ("array", tuple(map(value_key, value)))
    return (kind_of(value), value)


def kind_of(value: Any) -> str:
    """Which of ``KINDS`` a JSON value is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def pointer_text(pointer: Pointer) -> str:
    """RFC 6901."""
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in pointer)


def _is_deep(value: Any) -> bool:
    """Whether *value* is nested more than ``MAX_DEPTH`` deep, however deep it is."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inside = [item for one in level for item in (one.values() if isinstance(one, dict) else one)]
        level = [item for item in inside if isinstance(item, dict | list)]
    return bool(level)


def _at(root: Any, pointer: Pointer, source: Pointer) -> Any:
    target = root
    for part in pointer:
        if isinstance(target, dict) and part in target:
            target = target[part]
        elif isinstance(target, list) and part.isascii() and part.isdigit() and int(part) < len(target):
            target = target[int(part)]
        else:
            raise NotASchema((*source, "$ref"), "there is nothing where the $ref leads")
    return target


def _in_place(node: Node) -> list[Node]:
    """The schemas that *node* applies to the same value."""
    nodes = [schema for keyword in _LISTS for schema in node.keywords.get(keyword, ())]
    nodes += [node.keywords[keyword] for keyword in ("not", "if", "then", "else") if keyword in node.keywords]
    nodes += [schema for _, schema in node.keywords.get("dependentSchemas", ())]
    if "$ref" in node.keywords:
        nodes.append(node.target)
    return nodes


def _said(keyword: str, value: Any, references: int) -> Any:
    """What *value* of *keyword* says, hashable."""
    if isinstance(value, Node):
        return value.same
    if isinstance(value, dict):
        return frozenset((name, node.same) for name, node in value.items())
    if keyword in ("enum", "const"):
        return frozenset(map(value_key, value))
    if keyword in ("required", "dependentRequired"):
        return frozenset(value)
    if keyword == "dependentSchemas":
        return frozenset((name, node.same) for name, node in value)
    if keyword in _LISTS:
        said = sorted(node.same for node in value)
        return tuple(said) if keyword == "oneOf" else frozenset(said)
    if keyword == "prefixItems":
        return tuple(node.same for node in value)
    return (value, references) if keyword == "$ref" else value
