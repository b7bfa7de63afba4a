"""Write a labelled grid of the procedural scenes: one picture per class with one of its captions.

Usage: python scripts/contact_sheet.py docs/images/scenes_contact_sheet.png [--world pretrain] [--seed 0] [--round 0]
"""

from __future__ import annotations

import argparse
import io
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from petlbench.datasets.scenes.captions import captions
from petlbench.datasets.scenes.generator import describe, draw
from petlbench.datasets.scenes.worlds import WORLDS


def contact_sheet(path: Path, world_name: str, seed: int, turn: int, columns: int = 6) -> None:
    """Draw the sheet.

    Args:
        path: PNG to write.
        world_name: World to draw from.
        seed: Seed of the set.
        turn: Which round of the classes to show; every round holds each class once.
        columns: Pictures per row.
    """
    world = WORLDS[world_name]
    step = len(world.classes) + world.collages
    rows = -(-len(world.classes) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(columns * 1.62, rows * 2.2), squeeze=False)
    for place, axis in enumerate(axes.flat):
        axis.axis("off")
        if place >= len(world.classes):
            continue
        scene = describe(world, seed, turn * step + place)
        axis.imshow(draw(scene), interpolation="nearest")
        axis.set_title(world.classes[place], fontsize=8, pad=3)
        longest = max(captions(scene)[:3], key=len)
        axis.text(0.5, -0.03, textwrap.fill(longest, 33), transform=axis.transAxes, fontsize=5.4, ha="center", va="top")
    figure.subplots_adjust(left=0.01, right=0.99, top=0.98, bottom=0.045, wspace=0.06, hspace=0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = io.BytesIO()
    figure.savefig(sheet, dpi=100, format="png")
    plt.close(figure)
    with Image.open(sheet) as picture:  # a palette makes the file a third as large
        picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.FLOYDSTEINBERG).save(
            path, optimize=True
        )


def main() -> None:
    """Parse the command line and write the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="PNG file to write")
    parser.add_argument("--world", choices=sorted(WORLDS), default="scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--round", dest="turn", type=int, default=0, help="which round of the classes to show")
    options = parser.parse_args()
    contact_sheet(options.path, options.world, options.seed, options.turn)


if __name__ == "__main__":
    main()
