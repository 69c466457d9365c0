"""What the parts read when they start: signing keys, certificates, configurations.

Runs as a process of its own (``python -m strandline_cli.generate``, a layout in JSON on standard input): it needs
cryptography and protobuf, 20 MB that the supervisor would otherwise carry for as long as it runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from strandline_cli import envoys, nats
from strandline_cli.credentials import SERVICES, ensure_signing_keys
from strandline_cli.home import Home, Ports
from strandline_cli.parts import Layout, PlatformFailure
from strandline_cli.process import run_to_end

_WORKLOADS = (*SERVICES, "edge", "nats")


async def generate(layout: Layout) -> None:
    """Make what is missing, renew what runs out, and write the configurations anew.

    Raises:
        PlatformFailure: it did not work; carries the child's last words.
    """
    described = {"home": str(layout.home.root), "run": str(layout.run), "ports": vars(layout.ports)}
    code, output = await run_to_end(sys.executable, "-m", __name__, input=json.dumps(described).encode())
    if code != 0:
        raise PlatformFailure(f"certificates and configurations could not be written:\n{output[-2000:]}")


def _main() -> None:
    from strandline_gateway.certificates import ensure_certificates

    described = json.load(sys.stdin)
    layout = Layout(Home(Path(described["home"])), Path(described["run"]), Ports(**described["ports"]))
    ensure_signing_keys(layout.home.secrets)
    ensure_certificates(layout.home.certificates, _WORKLOADS, envoys.TRUST_DOMAIN)
    nats.write_configuration(layout)
    envoys.write_configurations(layout)


if __name__ == "__main__":
    _main()
