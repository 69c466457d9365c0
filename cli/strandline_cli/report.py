"""What `strandline up` says when everything runs: addresses, figures, and three commands to copy."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from strandline_cli.console import Console
from strandline_cli.home import Home
from strandline_cli.parts import Layout
from strandline_cli.process import memory_of_family
from strandline_cli.smoke import NAMESPACE, TYPE, Proof


def tell(layout: Layout, console: Console, proof: Proof, seconds: float) -> None:
    """Print it. *seconds*: from the command to the end of the smoke check."""
    console.line(f"    revision {proof.revision} was on the feed {proof.milliseconds:.0f} ms after its answer\n")
    memory, processes = memory_of_family(os.getpid())
    rows = {
        "REST": layout.rest,
        "gRPC": layout.grpc,
        "data": str(layout.home.root),
        "logs": str(layout.home.logs),
        "started in": f"{seconds:.1f} s",
        "memory": f"{memory / 1e6:.0f} MB (PSS of {processes} processes)",
    }
    console.table(list(rows.items()))
    console.line("\nIn another terminal:")
    for command in (*_preparation(layout.home), *_examples(layout, proof)):
        console.line(f"  [cyan]{command}[/cyan]")
    console.line("\nCtrl-C stops everything and keeps the data. For development only.")


def _examples(layout: Layout, proof: Proof) -> tuple[str, str, str]:
    """Write, read, and follow the feed from the smoke check's change on."""
    namespace = f"{layout.rest}/v1/namespaces/{NAMESPACE}"
    entities = f"{namespace}/types/{TYPE}/entities"
    token = '-H "Authorization: Bearer $(strandline token)"'
    return (
        f"""curl -s {token} -H 'Content-Type: application/json' {entities} -d '{{"data": {{"text": "hello"}}}}'""",
        f"curl -s {token} {entities}",
        f"curl -sN {token} '{namespace}:watch?after_revision={proof.revision - 1}'",
    )


def _preparation(home: Home) -> list[str]:
    """What makes `strandline` mean this platform there, when it would not by itself."""
    lines = []
    program = Path(sys.argv[0]).absolute()
    if shutil.which("strandline") is None and program.name == "strandline":
        lines.append(f"export PATH={program.parent}:$PATH")
    if "STRANDLINE_HOME" in os.environ:
        lines.append(f"export STRANDLINE_HOME={home.root}")
    return lines
