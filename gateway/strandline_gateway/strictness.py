"""What the edge's Lua scripts know about requests: field tables and query parameters, from the descriptor."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import descriptor

from strandline_gateway.building_blocks import Json
from strandline_gateway.descriptor import Rpc
from strandline_gateway.transcoding import lua_filter, script, transcoded_rpcs

STRICT = "strandline.strict"
# Messages with a JSON form of their own: free-form JSON, or a string.
OPAQUE = "google.protobuf."
MESSAGE_KINDS = {
    "google.protobuf.Value": None,
    "google.protobuf.ListValue": "an array",
    "google.protobuf.Timestamp": "a string",
    "google.protobuf.Duration": "a string",
    "google.protobuf.FieldMask": "a string",
}
SCALAR_KINDS = {
    descriptor.FieldDescriptor.TYPE_STRING: "a string",
    descriptor.FieldDescriptor.TYPE_BYTES: "a string",
    descriptor.FieldDescriptor.TYPE_ENUM: "a string or a number",
    descriptor.FieldDescriptor.TYPE_BOOL: "true or false",
}
# What the scripts check of a value beyond its kind; anything else is for the transcoder to refuse.
FORMATS = {
    descriptor.FieldDescriptor.TYPE_INT32: "int32",
    descriptor.FieldDescriptor.TYPE_INT64: "int64",
    descriptor.FieldDescriptor.TYPE_BYTES: "base64",
    descriptor.FieldDescriptor.TYPE_ENUM: "enum",
}
MESSAGE_FORMATS = {"google.protobuf.Timestamp": "time", "google.protobuf.Duration": "duration"}
SCRIPTS = ("problem_json.lua", "strict_values.lua", "strict_json.lua", "strict.lua")


def strict_filter() -> Json:
    """The Lua filter before the transcoder, which refuses what that would drop in silence."""
    return lua_filter(STRICT, tables() + "".join(script(name) for name in SCRIPTS))


def tables() -> str:
    """``SPECS`` of ``strict.lua``, and the fields of each message that can be part of a body."""
    messages: dict[str, descriptor.Descriptor] = {}
    specs = [f'["{rpc.name}"] = {{ query = {query(rpc)}, body = {body(rpc, messages)} }}' for rpc in transcoded_rpcs()]
    lines = [f"{name} = {{}}" for name in messages]
    # Filled after all exist: a message may hold another, or itself.
    for name, message in list(messages.items()):
        lines += [f"{name}.{spelling} = {field}" for spelling, field in fields(message.fields, messages)]
    return enums() + "local MESSAGES = {}\n" + "\n".join(lines) + "\nlocal SPECS = {\n" + ",\n".join(specs) + "\n}\n"


def query(rpc: Rpc) -> str:
    """The parameters of *rpc*: leaf fields of its request that neither path nor body binds."""
    assert rpc.http is not None
    if rpc.http.body == "*":
        return "{}"
    bound = rpc.http.variables | {rpc.http.body}
    free = [field for field in rpc.method.input_type.fields if field.name not in bound and is_leaf(field)]
    return lua_fields(fields(free, {}))


def body(rpc: Rpc, messages: dict[str, descriptor.Descriptor]) -> str:
    """The field that is the body of *rpc*: ``nil`` without one. Messages met on the way are added to *messages*."""
    assert rpc.http is not None
    request = rpc.method.input_type
    if not rpc.http.body:
        return "nil"
    if rpc.http.body != "*":
        return lua_field(request.fields_by_name[rpc.http.body], messages)
    free = [field for field in request.fields if field.name not in rpc.http.variables]
    return f'{{ kind = "an object", message = {lua_fields(fields(free, messages))} }}'


def fields(
    found: Iterable[descriptor.FieldDescriptor], messages: dict[str, descriptor.Descriptor]
) -> list[tuple[str, str]]:
    """Both spellings that protobuf's JSON accepts for each field, with its Lua value."""
    return [
        (spelling, lua_field(field, messages)) for field in found for spelling in sorted({field.name, field.json_name})
    ]


def lua_fields(found: list[tuple[str, str]]) -> str:
    return "{ " + ", ".join(f"{spelling} = {field}" for spelling, field in found) + " }"


def lua_field(field: descriptor.FieldDescriptor, messages: dict[str, descriptor.Descriptor]) -> str:
    """A field as ``strict_json.lua`` describes it."""
    parts = [f'name = "{field.name}"']
    if (kind := kind_of(field)) is not None:
        parts.append(f'kind = "{kind}"')
    if field.is_repeated:
        parts.append("repeated = true")
    if (value_format := format_of(field)) is not None:
        parts.append(f'format = "{value_format}"')
    if field.enum_type is not None:
        parts.append(f'enum = ENUMS["{field.enum_type.full_name}"]')
    # An optional field is, to protobuf, a choice of one.
    if field.containing_oneof is not None and len(field.containing_oneof.fields) > 1:
        parts.append(f'oneof = "{field.containing_oneof.name}"')
    message = field.message_type
    if message is not None and not message.full_name.startswith(OPAQUE):
        name = f'MESSAGES["{message.full_name}"]'
        parts.append(f"message = {name}")
        if name not in messages:
            messages[name] = message
            fields(message.fields, messages)  # for the messages inside
    return "{ " + ", ".join(parts) + " }"


def kind_of(field: descriptor.FieldDescriptor) -> str | None:
    """What JSON one value of *field* takes, in words that end "must be ..."; None: any."""
    if field.message_type is not None:
        return MESSAGE_KINDS.get(field.message_type.full_name, "an object")
    return SCALAR_KINDS.get(field.type, "a number")


def format_of(field: descriptor.FieldDescriptor) -> str | None:
    """The format that ``strict_values.lua`` checks in one value of *field*; None: none."""
    if field.message_type is not None:
        return MESSAGE_FORMATS.get(field.message_type.full_name)
    return FORMATS.get(field.type)


def enums() -> str:
    """``ENUMS`` of ``strict_values.lua``: the names of every enum that can be part of a request."""
    found: dict[str, descriptor.EnumDescriptor] = {}
    for rpc in transcoded_rpcs():
        for message in messages_in(rpc.method.input_type):
            found |= {field.enum_type.full_name: field.enum_type for field in message.fields if field.enum_type}
    return "local ENUMS = {\n" + "".join(f'["{name}"] = {lua_enum(enum)},\n' for name, enum in found.items()) + "}\n"


def lua_enum(enum: descriptor.EnumDescriptor) -> str:
    names = ", ".join(f"{value.name} = true" for value in enum.values)
    offered = ", ".join(value.name for value in enum.values if value.number != 0)
    return f'{{ names = {{ {names} }}, message = "must be one of {offered}" }}'


def messages_in(root: descriptor.Descriptor) -> Iterable[descriptor.Descriptor]:
    """*root* and every message of ours that can be inside of it."""
    found = {root.full_name: root}
    pending = [root]
    while pending:
        for field in pending.pop().fields:
            inner = field.message_type
            if inner is not None and not inner.full_name.startswith(OPAQUE) and inner.full_name not in found:
                found[inner.full_name] = inner
                pending.append(inner)
    return found.values()


def is_leaf(field: descriptor.FieldDescriptor) -> bool:
    """Whether the field can be a query parameter."""
    return kind_of(field) not in ("an object", "an array", None)
