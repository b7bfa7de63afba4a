"""The shipped tiny-vilt: its file, its tokenizer, and what it learned."""

import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from support import ROOT

from petlbench.methods.backbones import tiny_vilt, weights_io
from petlbench.methods.backbones.base import BackboneError
from petlbench.methods.backbones.registry import load_backbone
from petlbench.methods.backbones.tiny_vilt import untrained_tiny_vilt

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_shipped_file():
    model = load_backbone("tiny-vilt")
    assert (model.provenance.kind, model.aligned, model.resolution, model.grid) == ("vilt", True, 64, (4, 4))
    assert (model.joint.depth, model.width, model.heads) == (4, 64, 4)
    assert model.provenance.source == "tiny_vilt.safetensors"
    assert tiny_vilt.WEIGHTS.stat().st_size <= 2.5 * 2**20
    with safe_open(tiny_vilt.WEIGHTS, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    assert {p.dtype for p in model.parameters()} == {torch.float32} and not model.training
    assert torch.equal(model.rank_output.weight, model.itm_head[0][1:])


def test_the_card_describes_the_shipped_file():
    card = (tiny_vilt.WEIGHTS.parent / "MODEL_CARD.md").read_text()
    model = load_backbone("tiny-vilt")
    assert weights_io.file_sha256(tiny_vilt.WEIGHTS) in card
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card


def test_captions_begin_with_the_token_that_is_pooled():
    model = untrained_tiny_vilt()
    tokens = model.tokenize(["a port", "word " * 90])
    assert tokens.ids.shape == (2, 40) and (tokens.ids[:, 0] == tiny_vilt.VOCAB_SIZE - 2).all()
    assert tokens.mask[1].all() and tokens.ids[1, -1] == tiny_vilt.VOCAB_SIZE - 1
    assert (tokens.ids[0][~tokens.mask[0]] == 0).all() and tokens.mask[0].sum() < 6
    assert len(model.tokenize([])) == 0
    assert not model.aligned and model.provenance.source == "random initialisation, seed 0"


def test_another_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"vilt.cls_token": torch.zeros(1, 1, 64)}, tmp_path / "other.safetensors")
    with pytest.raises(BackboneError, match=r"other\.safetensors does not fit.*Is it a tiny-vilt file\?"):
        load_backbone("tiny-vilt", weights=tmp_path / "other.safetensors")


def test_it_knows_what_a_scene_shows():
    """Captions of pretraining scenes find their own picture far more often than by chance (1 in 40)."""
    from petlbench.datasets.augment import normalise
    from petlbench.datasets.preprocess import prepare_picture
    from petlbench.datasets.scenes.captions import captions
    from petlbench.datasets.scenes.generator import describe, draw
    from petlbench.datasets.scenes.worlds import PRETRAIN

    model = load_backbone("tiny-vilt")
    scenes = [describe(PRETRAIN, 99, index) for index in range(40)]
    pixels = torch.stack([torch.from_numpy(prepare_picture(draw(scene), 64).copy()) for scene in scenes])
    images = normalise(pixels.permute(0, 3, 1, 2), model.provenance.mean, model.provenance.std)
    tokens = model.tokenize([captions(scene)[0] for scene in scenes]).trimmed()
    with torch.inference_mode():
        image, text = model.embed_image(images), model.embed_text(tokens)
        rows = [
            model.head(model.joint.run_pooled(model.join(text, tokens.mask, one.expand(40, -1, -1)))) for one in image
        ]
    found = torch.stack(rows, 1).argmax(1) == torch.arange(40)
    assert found.float().mean() > 0.3


@pytest.mark.slow
def test_the_pretraining_script_runs(tmp_path):
    """From rendering to a file that loads, on one batch of each stage."""
    out = tmp_path / "try.safetensors"
    sizes = ["--pictures", "128", "--align-epochs", "1", "--fuse-epochs", "1", "--groups", "2"]
    command = [sys.executable, "scripts/pretrain_tiny_vilt.py", *sizes, "--output", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "scenes_val_zero_shot" in done.stdout
    assert load_backbone("tiny-vilt", weights=out).provenance.source == "try.safetensors"
