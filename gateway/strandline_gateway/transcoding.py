"""The transcoder's view of the protos, and what Envoy 1.40 lacks for it.

The transcoder cannot render ``response_body: "entity"``. So its copy of the descriptor says that the RPC returns the
field's own message, and ``unwrap.lua``, between transcoder and service, cuts that field out of the encoded response.
"""

from __future__ import annotations

import base64
from functools import cache
from importlib.resources import files

from google.api import annotations_pb2
from google.protobuf import descriptor_pb2

from strandline_gateway.building_blocks import Json, extension
from strandline_gateway.descriptor import Rpc, descriptor_set, rpcs

# Files that define nothing but options.
OPTION_FILES = ("buf/validate/", "google/api/", "strandline/rpc/")
# Without it an error with details has an empty body.
ERROR_DETAILS = "google/rpc/error_details.proto"
TRANSCODER = "envoy.filters.http.grpc_json_transcoder"
UNWRAP = "strandline.unwrap"
# Of one answer as JSON: pages end at 3 MiB as protobuf, JSON is up to about three times larger.
MAX_RESPONSE = 16 * 1024 * 1024


def transcoded_rpcs() -> tuple[Rpc, ...]:
    """The RPCs whose REST form the edge makes itself."""
    return tuple(rpc for rpc in rpcs() if rpc.is_public and rpc.http is not None and not rpc.access.served_over_http)


def transcoder(services: frozenset[str]) -> Json:
    """The filter for the gRPC services named *services*."""
    return extension(
        TRANSCODER,
        "filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        proto_descriptor_bin=base64.b64encode(envoy_descriptor_set()).decode(),
        services=sorted(services),
        # Without it the route, and with it the timeout, is chosen again by the gRPC path.
        match_incoming_request_route=True,
        convert_grpc_status=True,
        print_options={"always_print_primitive_fields": True},
        request_validation_options={
            "reject_unknown_method": True,
            "reject_unknown_query_parameters": True,
            # A name in the body that differs from the path would win otherwise.
            "reject_binding_body_field_collisions": True,
        },
        max_response_body_size=MAX_RESPONSE,
        query_param_unescape_plus=True,
    )


@cache
def envoy_descriptor_set() -> bytes:
    """The part of the descriptor set that Envoy needs, with each ``response_body`` replaced by its message."""
    answers = {rpc.path: rpc.answer for rpc in transcoded_rpcs()}
    files = {file.name: lean(file) for file in descriptor_set().file}
    for file in files.values():
        for service in file.service:
            for method in service.method:
                answer = answers.get(f"/{file.package}.{service.name}/{method.name}")
                if answer is not None and answer.message_type is not None:
                    method.options.Extensions[annotations_pb2.http].ClearField("response_body")
                    method.output_type = f".{answer.message_type.full_name}"
    ours = [name for name in files if name.startswith("strandline/") and not name.startswith(OPTION_FILES)]
    pending = [*ours, ERROR_DETAILS]
    needed = set(pending)
    for name in pending:
        pending.extend(dependency for dependency in files[name].dependency if dependency not in needed)
        needed.update(files[name].dependency)
    kept = [file for name, file in files.items() if name in needed and not name.startswith(OPTION_FILES)]
    return descriptor_pb2.FileDescriptorSet(file=kept).SerializeToString()


def lean(file: descriptor_pb2.FileDescriptorProto) -> descriptor_pb2.FileDescriptorProto:
    """A copy without options other than HTTP rules, and without the imports that only those needed."""
    copy = descriptor_pb2.FileDescriptorProto()
    copy.CopyFrom(file)
    pending = list(copy.message_type)
    for message in pending:
        for field in message.field:
            field.ClearField("options")
        for oneof in message.oneof_decl:
            oneof.ClearField("options")
        pending.extend(message.nested_type)
    for service in copy.service:
        for method in service.method:
            rule = method.options.Extensions[annotations_pb2.http]
            options = descriptor_pb2.MethodOptions()
            if rule.WhichOneof("pattern") is not None:
                options.Extensions[annotations_pb2.http].CopyFrom(rule)
            method.options.CopyFrom(options)
    imports = [name for name in copy.dependency if not name.startswith(OPTION_FILES)]
    copy.ClearField("dependency")
    copy.dependency.extend(imports)
    return copy


def unwrap_filter() -> Json:
    """The Lua filter behind the transcoder."""
    fields = [f'["{rpc.name}"] = {rpc.answer.number}' for rpc in transcoded_rpcs() if rpc.answer is not None]
    return lua_filter(UNWRAP, f"local FIELDS = {{ {', '.join(fields)} }}\n" + script("unwrap.lua"))


def lua_filter(name: str, source: str) -> Json:
    return extension(name, "filters.http.lua.v3.Lua", default_source_code={"inline_string": source})


def script(name: str) -> str:
    """A Lua file of this package."""
    return files(__package__).joinpath(name).read_text()
