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


def strict_filter() -> Json:
    """The Lua filter before the transcoder, which refuses what that would drop in silence."""
    return lua_filter(STRICT, tables() + script("problem_json.lua") + script("strict_json.lua") + script("strict.lua"))


def tables() -> str:
    """``SPECS`` of ``strict.lua``, and the fields of each message that can be part of a body."""
    messages: dict[str, descriptor.Descriptor] = {}
    specs = [f'["{rpc.name}"] = {{ query = {query(rpc)}, body = {body(rpc, messages)} }}' for rpc in transcoded_rpcs()]
    lines = [f"{name} = {{}}" for name in messages]
    # Filled after all exist: a message may hold another, or itself.
    for name, message in list(messages.items()):
        lines += [f"{name}.{spelling} = {field}" for spelling, field in fields(message.fields, messages)]
    return "local MESSAGES = {}\n" + "\n".join(lines) + "\nlocal SPECS = {\n" + ",\n".join(specs) + "\n}\n"


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


def is_leaf(field: descriptor.FieldDescriptor) -> bool:
    """Whether the field can be a query parameter."""
    return kind_of(field) not in ("an object", "an array", None)
