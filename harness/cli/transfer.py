"""`benchmark transfer`: trained on one data set, tested on another, without near-duplicate pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petlbench.harness.cli import options as o

if TYPE_CHECKING:
    from petlbench.harness.transfer_record import TransferRecord


def transfer(
    records: Annotated[list[Path], typer.Argument(metavar="RECORD...", help="Records of finished trials.")],
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="NAME", help="Data set to test on: a card's name or path, or a folder.", show_default=False
        ),
    ],
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of that set's files (default: as for every other verb).")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Results folder for the transfers (default: that of each record)."),
    ] = None,
    dataset: o.Card = None,
    set_: o.FilePlaces = None,
    plugin: o.MethodFiles = None,
    as_json: o.Json = False,
) -> None:
    """Test trained methods on the test split of another data set. Nothing is trained.

    Test pictures that are near duplicates of pictures in the records' train and
    val splits are left out first. Each transfer is written below
    RESULTS/transfer and gets a table of its own on the board.

    Examples:
      benchmark transfer mine/ucm/lora/*.json --to rsicd
      benchmark transfer RECORD --to sydney --root /data/sydney
    """
    import json

    from petlbench.harness.gallery_data import share_places
    from petlbench.harness.transfer import Transfers, open_target

    paths = list(dict.fromkeys(path.expanduser() for path in records))
    places = share_places(o.places_from(set_, dataset, plugin), paths)
    transfers = Transfers(open_target(to, root), _progress)
    rows = []
    for path, own in zip(paths, places, strict=True):
        written, made = transfers.run(path, own, results.expanduser() if results else None)
        rows.append({"record": str(path), "transfer": str(written), **_numbers(made)})
        if not as_json:
            _show(written, made)
    if as_json:
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))


def _numbers(made: TransferRecord) -> dict[str, object]:
    return {
        "transfer_id": made.transfer_id,
        "images": made.target.test.images,
        "captions": made.target.test.captions,
        "left_out": len(made.target.left_out),
        "shared_captions": made.target.shared_captions,
        "recalls": made.metrics.recalls,
        "notes": made.notes,
    }


def _show(written: Path, made: TransferRecord) -> None:
    spec, target, found = made.source.spec, made.target, made.metrics.recalls
    recalls = "  ".join(f"{name} {found[name]:.2f}" for name in ("i2t_r1", "i2t_r10", "t2i_r1", "t2i_r10", "mR"))
    typer.echo(f"{spec['method']['name']}, seed {spec['seed']}, {spec['dataset']['name']} -> {target.name}: {recalls}")
    typer.echo(
        f"  {target.test.images:,} of {target.whole.images:,} test pictures ({len(target.left_out)} near duplicates left out), "
        f"{target.shared_captions} of {target.test.captions:,} captions also in the training captions"
    )
    for note in made.notes:
        typer.echo(f"  note: {note}")
    typer.echo(f"  wrote {written}")


def _progress(what: str, done: int, of: int) -> None:
    if sys.stderr.isatty():
        typer.echo(
            f"\rcomparing pictures: {what} {done:,} of {of:,}" + ("\n" if done == of else ""), nl=False, err=True
        )
