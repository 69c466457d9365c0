"""``python -m strandline_gateway --topology topology.json --out DIR``: write the configurations of an installation."""

from __future__ import annotations

import argparse
from pathlib import Path

from strandline_gateway import Topology, generate


def main() -> None:
    parser = argparse.ArgumentParser(prog="strandline_gateway", description=__doc__)
    parser.add_argument("--topology", type=Path, required=True, help="JSON form of strandline_gateway.Topology")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files; made if missing")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, text in generate(Topology.from_json(arguments.topology.read_text())).items():
        (arguments.out / name).write_text(text)


if __name__ == "__main__":
    main()
