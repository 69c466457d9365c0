"""What the descriptor set says: RPCs with their access option and HTTP rule, and the fields of their messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import strandline.rpc
from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor, descriptor_pb2, descriptor_pool
from strandline.rpc.v1 import access_pb2

VARIABLE = re.compile(r"\{([^}=]+)(?:=([^}]*))?\}")


@dataclass(frozen=True)
class HttpRule:
    """The REST form of an RPC: the method, its path template, and the request field that is the body.

    *body* is empty when there is none and ``*`` when it is the whole request; *response_body* is the response field
    that is the answer, empty when it is the whole response.
    """

    method: str
    template: str
    body: str
    response_body: str

    @property
    def variables(self) -> frozenset[str]:
        """Request fields that the path binds."""
        return frozenset(name for name, _ in VARIABLE.findall(self.template))

    @property
    def regex(self) -> str:
        """The path as a regular expression. A segment holds no colon, because ``:verb`` ends a path."""
        plain = VARIABLE.sub(lambda match: match[2] or "*", self.template)
        return re.escape(plain).replace(r"\*", "[^/:]+")


@dataclass(frozen=True)
class Rpc:
    """One RPC."""

    service: str
    method: descriptor.MethodDescriptor
    access: access_pb2.Access
    http: HttpRule | None

    @property
    def path(self) -> str:
        """The gRPC path."""
        return f"/{self.service}/{self.method.name}"

    @property
    def name(self) -> str:
        """Short and unique, as access logs show it: ``EntityService.GetEntity``."""
        return f"{self.service.rpartition('.')[2]}.{self.method.name}"

    @property
    def callers(self) -> frozenset[str]:
        """Workloads that may call it."""
        return frozenset(access_pb2.Access.Workload.Name(caller).lower() for caller in self.access.callers)

    @property
    def is_public(self) -> bool:
        """Whether the edge offers it."""
        return "edge" in self.callers and self.access.identity != access_pb2.Access.WORKLOAD_ONLY

    @property
    def needs_token(self) -> bool:
        """Whether the edge asks for a valid access token. Whatever is not declared open is closed."""
        return self.access.identity != access_pb2.Access.ANYONE

    @property
    def answer(self) -> descriptor.FieldDescriptor | None:
        """The response field that is the whole REST answer; None when the response itself is."""
        if self.http is None or not self.http.response_body:
            return None
        return self.method.output_type.fields_by_name[self.http.response_body]

    @property
    def takes_stream(self) -> bool:
        """Whether the client sends any number of requests, over HTTP as frames of a WebSocket."""
        return self.method.client_streaming

    @property
    def is_write(self) -> bool:
        """Whether it can be repeated safely by a request id."""
        return "request_id" in self.method.input_type.fields_by_name


@cache
def descriptor_set() -> descriptor_pb2.FileDescriptorSet:
    """The installed set, without comments (nine tenths of it)."""
    path = Path(next(iter(strandline.rpc.__path__))).parent / "descriptors.binpb"
    files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    for file in files.file:
        file.ClearField("source_code_info")
    return files


@cache
def rpcs() -> tuple[Rpc, ...]:
    """Every RPC of Strandline, in the order of the protos."""
    pool = descriptor_pool.DescriptorPool()
    found: list[Rpc] = []
    for file in descriptor_set().file:
        pool.Add(file)
        if file.package.startswith("strandline."):
            found.extend(rpcs_of(file, pool.FindFileByName(file.name)))
    return tuple(found)


def rpcs_of(file: descriptor_pb2.FileDescriptorProto, resolved: descriptor.FileDescriptor) -> Iterator[Rpc]:
    for service in file.service:
        for method in service.method:
            yield Rpc(
                service=f"{file.package}.{service.name}",
                method=resolved.services_by_name[service.name].methods_by_name[method.name],
                access=method.options.Extensions[access_pb2.access],
                http=http_rule(method.options.Extensions[annotations_pb2.http]),
            )


def http_rule(rule: http_pb2.HttpRule) -> HttpRule | None:
    if (pattern := rule.WhichOneof("pattern")) is None:
        return None
    return HttpRule(
        method=pattern.upper(), template=getattr(rule, pattern), body=rule.body, response_body=rule.response_body
    )
