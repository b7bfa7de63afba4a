"""How long a board of many records takes: reading, tables, comparisons, and every output.

Run ``python benchmarks/aggregate.py`` (``--records 1000 3000 10000`` by default, ``--quick`` for 300). Valid records are
written to a temporary folder: 20 tables (5 data sets, 4 backbones), 5 seeds per row, sizes and learning curves as in
real ones. ``--ranks 0.1`` gives every tenth row of a table its files of ranks, so that intervals and tests are part of
it; the other rows have recalls only and are reported as such. The yardstick is reading and parsing the same files with
``json.loads`` and doing nothing else. Seconds are processor time of one process, with the files in the page cache.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from factories import make_payload, ranks_from

from petlbench.harness.metrics import Ranks
from petlbench.harness.record_files import RANKS_SUFFIX, find_records, record_path
from petlbench.leaderboard.board import WRITERS, write_board
from petlbench.leaderboard.collector import collector_paused
from petlbench.leaderboard.load import load_records
from petlbench.leaderboard.table import make_board

DATASETS, BACKBONES, SEEDS = 5, 4, 5
IMAGES, PER_IMAGE, EPOCHS = 210, 5, 20
SIZES = (1_000, 3_000, 10_000)
TARGET_S = 12.0
"""Reading, tables and every output of 10,000 records, without comparisons of rows."""

T = TypeVar("T")


def draw_ranks(rng: np.random.Generator) -> Ranks:
    """Ranks without ties; right answers land early as often as in a trained model."""
    owner = np.repeat(np.arange(IMAGES), PER_IMAGE)
    i2t = np.minimum(rng.geometric(0.08, IMAGES) - 1, len(owner) - 1)
    return ranks_from(owner, i2t, np.minimum(rng.geometric(0.08, len(owner)) - 1, IMAGES - 1))


def payload(place: tuple[int, int], row: int, seed: int, ranks: Ranks) -> dict[str, Any]:
    """A record of status ok of the given row of the table of a data set and a backbone, as long as real ones."""
    dataset, backbone = f"set{place[0]}", f"vit-{place[1]}"

    def lengthen(made: dict[str, Any]) -> None:
        made["spec"]["protocol"] = {"selection": "best_val", "tie_rule": "index"}
        splits = made["data"]["splits"]
        splits["val"] = dict(splits["train"])
        for name, split in splits.items():
            split["sha256"] = hashlib.sha256(f"{dataset} {name}".encode()).hexdigest()
        made["params"].update(trained=1000 * (row + 1), stored_bytes=4000 * (row + 1))
        epoch = {"parts": {"info_nce": 0.5}, **made["curve"][0]}
        made["curve"] = [{**epoch, "epoch": number} for number in range(1, EPOCHS + 1)]
        made["audit"] = dict.fromkeys(
            ("frozen_unchanged", "trainable_count", "gradients", "step_0", "loss_finite"), "ok"
        )
        made["provenance"]["packages"] = {f"package{i}": "1.2.3" for i in range(20)}

    options = {"alpha": 16.0, "targets": ["q", "k", "v", "o"]}
    return make_payload(
        ranks,
        method=f"method_{row:03d}",
        options=options,
        dataset=dataset,
        backbone=backbone,
        seed=seed,
        change=lengthen,
    )


def generate(root: Path, records: int, with_ranks: float) -> int:
    """Fill a folder; returns how many records got ranks."""
    rng = np.random.default_rng(0)
    places = [(d, b) for d in range(DATASETS) for b in range(BACKBONES)]
    written = ranked = 0
    row = 0
    while written < records:
        for place in places:
            for seed in range(SEEDS):
                if written == records:
                    return ranked
                ranks = draw_ranks(rng)
                made = payload(place, row, seed, ranks)
                path = record_path(root, made["spec"], made["spec_id"])
                path.parent.mkdir(parents=True, exist_ok=True)
                if int((row + 1) * with_ranks) > int(row * with_ranks):
                    made["artifacts"] = {"ranks": path.stem + RANKS_SUFFIX}
                    ranks.save(path.with_name(path.stem + RANKS_SUFFIX))
                    ranked += 1
                path.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")
                written += 1
        row += 1
    return ranked


def timed(work: Callable[[], T]) -> tuple[float, T]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def parse_only(root: Path) -> int:
    return sum(len(json.loads(path.read_text(encoding="utf-8"))) for path in find_records(root))


@collector_paused()  # as the command line does it
def measure(records: int, with_ranks: float) -> float:
    """Print one size; returns the seconds of everything but the comparison of all pairs of rows."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "results"
        ranked = generate(root, records, with_ranks)
        size = sum(path.stat().st_size for path in find_records(root))
        parse_only(root)  # fills the page cache
        plain, _ = timed(lambda: parse_only(root))
        load, loaded = timed(lambda: load_records(root))
        assert len(loaded.entries) == records and not loaded.problems, loaded.problems[:1]
        build, board = timed(lambda: make_board(loaded))
        pairs, _ = timed(lambda: [table.pairs for table in board.tables])
        rows = sum(len(table.rows) for table in board.tables)
        print(
            f"\n{records:,} records ({size / 2**20:.0f} MiB), {ranked:,} of them with ranks; {len(board.tables)} tables, "
            f"{rows:,} rows"
        )
        lines = [("json.loads of the files", plain), ("load_records", load), ("tables", build)]
        lines.append(("all pairs of rows", pairs))
        for name in WRITERS:
            seconds, (path,) = timed(lambda name=name: write_board(board, Path(folder), formats=[name]))  # type: ignore[misc]
            lines.append((f"{name} ({path.stat().st_size / 2**20:.1f} MiB)", seconds))
        for name, seconds in lines:
            print(f"  {name:32} {seconds:8.2f} s {seconds / plain:8.1f} x json.loads")
        total = load + build + sum(seconds for _, seconds in lines[4:])
        print(f"  {'reading, tables, all outputs':32} {total:8.2f} s {total / plain:8.1f} x json.loads")
        return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, nargs="+", default=list(SIZES), help="numbers of records")
    parser.add_argument("--ranks", type=float, default=0.1, help="share of the rows of each table that have ranks")
    parser.add_argument("--quick", action="store_true", help="300 records only")
    asked = parser.parse_args()
    if not 0 <= asked.ranks <= 1:
        parser.error(f"--ranks is {asked.ranks}, expected a share from 0 to 1")
    for records in [300] if asked.quick else asked.records:
        seconds = measure(records, asked.ranks)
        if records >= SIZES[-1] and seconds > TARGET_S:
            sys.exit(f"{records:,} records took {seconds:.1f} s, the target is {TARGET_S:g} s")


if __name__ == "__main__":
    main()
