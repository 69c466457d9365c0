"""Build hook: compile ``protos/strandline/**`` into the wheel being built.

The stubs go into the wheel (or, for an editable install, straight into site-packages) as ``strandline.<service>.v1``,
with one descriptor set beside them that the gateway generator, Envoy and ``buf`` read. Nothing is written to the tree.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
import tempfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2
from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from protovalidate._gen.buf.validate import validate_pb  # the wheel ships no .proto

DESCRIPTOR_SET = "descriptors.binpb"
# Envoy decodes error details only if their types are in the set.
ERROR_PROTOS = ("google/rpc/status.proto", "google/rpc/error_details.proto")


class StubsBuildHook(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        # The folder lives until this hook object dies, that is, until the wheel is written.
        self._scratch = tempfile.TemporaryDirectory(prefix="strandline-stubs-")
        out = Path(self._scratch.name)
        build_stubs(Path(self.root, "protos"), out)
        build_data["force_include_editable" if version == "editable" else "force_include"].update(
            {str(out / "strandline"): "strandline", str(out / "buf"): "buf"}
        )


def build_stubs(protos: Path, out: Path) -> None:
    """Write ``strandline/`` and ``buf/`` stubs, typed, and ``strandline/descriptors.binpb`` below *out*."""
    rules = out / "validate.binpb"
    rules.write_bytes(validation_rules().SerializeToString())
    sources = sorted(str(path.relative_to(protos)) for path in protos.rglob("*.proto"))
    # Found through the distribution: google.api is a namespace package and has no one folder.
    googleapis = str(distribution("googleapis-common-protos").locate_file(""))
    common = [f"-I{protos}", f"-I{googleapis}", f"--descriptor_set_in={rules}"]
    plugins = [f"--plugin={name}={plugin(name)}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    run([*common, *plugins, *outputs, *sources])
    run(
        [
            f"--descriptor_set_in={rules}",
            plugins[0],
            f"--python_out={out}",
            f"--mypy_out={out}",
            "buf/validate/validate.proto",
        ]
    )
    image = out / "strandline" / DESCRIPTOR_SET
    run(
        [
            *common,
            "--include_imports",
            "--include_source_info",
            f"--descriptor_set_out={image}",
            *sources,
            *ERROR_PROTOS,
        ]
    )
    rules.unlink()
    Path(out, "strandline", "py.typed").touch()


def validation_rules() -> descriptor_pb2.FileDescriptorSet:
    """The file ``buf/validate/validate.proto`` and what it imports, from the wheel of protovalidate."""
    files = descriptor_pb2.FileDescriptorSet()
    for module in (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2):
        files.file.append(descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb))
    files.file.append(descriptor_pb2.FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary()))
    return files


def run(arguments: list[str]) -> None:
    well_known = Path(protoc.__file__).parent / "_proto"
    if protoc.main(["protoc", f"-I{well_known}", *arguments]) != 0:
        raise RuntimeError("protoc failed; its messages are above")


def plugin(name: str) -> str:
    """Path of a protoc plugin, in an isolated build (on PATH) or not (beside Python)."""
    search = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
    if (path := shutil.which(name, path=search)) is None:
        raise RuntimeError(f"{name} not found: install mypy-protobuf")
    return path
