"""`benchmark export-backbone`: what a trial made of its backbone, as a weight file that other trials start from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from petlbench.harness.cli import options as o

if TYPE_CHECKING:
    from petlbench.harness.backbone_export import Export


def export_backbone(
    record: Annotated[
        Path, typer.Argument(metavar="RECORD", help="Record of a finished trial; its weights lie beside it.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The .safetensors file to write.", show_default=False)],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    dataset: o.Card = None,
    set_: o.FilePlaces = None,
    plugin: o.MethodFiles = None,
    as_json: o.Json = False,
) -> None:
    """Write the whole backbone of a finished trial: both towers, joining heads, temperature.

    The model is built again from its record and the stored tensors. Methods
    that leave modules of their own in the model are refused. The file says in
    its header which trial, data and weights it comes from.

    Examples:
      benchmark export-backbone results/rsicd/full_finetune/vits14-minilm-s0-12345678.json --out vits14-minilm-joint.safetensors
      benchmark run zero_shot -b vits14-minilm-joint -d ucm --set backbone.vits14-minilm-joint.weights=FILE
    """
    from petlbench.harness.backbone_export import export_backbone as export

    written = export(record.expanduser(), out.expanduser(), o.places_from(set_, dataset, plugin), force=force)
    if as_json:
        _as_json(written)
    else:
        _show(written)


def _as_json(written: Export) -> None:
    import json

    row = {
        "file": str(written.path),
        "sha256": written.sha256,
        "bytes": written.size,
        "tensors": written.tensors,
        "scalars": written.scalars,
        "backbone": reader(written),
        "header": written.header.model_dump(mode="json"),
    }
    typer.echo(json.dumps(row, indent=1, sort_keys=True))


def _show(written: Export) -> None:
    by, name = written.header.alignment, reader(written)
    score = "" if by.val_mR is None else f", validation mR {by.val_mR:.2f}"
    typer.echo(
        f"wrote {written.path}: {written.tensors} tensors, {written.scalars:,} scalars, {written.size / 1e6:.1f} MB, sha256 "
        f"{written.sha256[:12]}\n"
        f"{written.header.name} after {by.method} on {by.dataset}, trial {by.spec_id[:8]}, epoch {by.epoch}{score}\n"
        f"Start from it: benchmark run METHOD -b {name} -d DATASET --set backbone.{name}.weights={written.path}"
    )


def reader(written: Export) -> str:
    """Name of the backbone whose option ``weights`` reads the file; a tag of the weights before it does not go along."""
    if written.header.two_tower is not None:
        return "vits14-minilm-joint"
    return written.header.name.partition(":")[0]
