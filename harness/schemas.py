"""JSON Schemas of the files that are shared: ``python -m petlbench.harness.schemas results/schema`` writes them anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from petlbench.harness.json_files import write_atomically
from petlbench.harness.record import SCHEMA, Record
from petlbench.harness.record_scoring import Part
from petlbench.harness.transfer_record import TRANSFER_VERSION, TransferRecord

SHARED: dict[str, type[Part]] = {
    f"record.v{SCHEMA}.json": Record,
    f"transfer.v{TRANSFER_VERSION}.json": TransferRecord,
}
"""File of ``results/schema`` to what it describes."""


def schema_text(part: type[Part]) -> str:
    """The content of a schema's file; equal models give equal text."""
    return json.dumps(part.model_json_schema(), indent=1, sort_keys=True) + "\n"


def main() -> None:
    """Write the schemas into the folder given."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("give the folder of the schemas: python -m petlbench.harness.schemas results/schema")
    for name, part in SHARED.items():
        write_atomically(Path(sys.argv[1]) / name, schema_text(part).encode())


if __name__ == "__main__":
    main()
