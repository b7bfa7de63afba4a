"""ViLT checkpoints: layouts that are read, heads that are kept, files that are refused."""

import re

import pytest
import torch
from safetensors.torch import save_file
from vilt_layouts import WIDTH, itm, original, trunk, written

from petlbench.methods.backbones.base import BackboneError
from petlbench.methods.backbones.random_models import random_vilt
from petlbench.methods.backbones.vilt_files import load_vilt_weights, vilt_names

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source():
    """The model whose weights are written in each layout."""
    return random_vilt(seed=5)


def blank():
    """A model of other values, to load into."""
    return random_vilt(seed=6)


def assert_same_trunk(found, expected):
    wanted = expected.vilt.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.vilt.state_dict().items())


# --- layouts ---


@torch.no_grad()
def test_vilts_own_layout_is_read(source, tmp_path):
    path = written(
        tmp_path / "vilt_200k_mlm_itm.ckpt", {**original(source), **itm(source)}, hyper_parameters={"vit": "b"}
    )
    model = blank()
    assert load_vilt_weights(model, path) == "itm"
    assert_same_trunk(model, source)
    images, tokens = torch.randn(2, 3, 48, 48), model.tokenize(["a port", "two planes"])
    assert torch.equal(model.score_pairs(images, tokens), source.score_pairs(images, tokens))
    assert all(torch.equal(own, other) for own, other in zip(model.itm_head, source.itm_head, strict=True))


def test_objects_beside_the_weights_of_lightning_are_not_built(source, tmp_path):
    """Lightning stores the callbacks' classes as keys after the weights; the restricted reader refuses a file with them."""
    callbacks = {torch.nn.Linear: {"best": 1.0}}
    path = written(tmp_path / "last.ckpt", {**original(source), **itm(source)}, callbacks=callbacks)
    model = blank()
    load_vilt_weights(model, path)
    assert_same_trunk(model, source)


@pytest.mark.parametrize("prefix", ["vilt.", ""])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_the_layout_of_transformers_is_read(source, tmp_path, prefix, suffix):
    state = {f"{prefix}{name}": tensor for name, tensor in source.vilt.state_dict().items()}
    state |= itm(source) | {"mlm_score.decoder.weight": torch.zeros(512, WIDTH)}
    state[f"{prefix}embeddings.text_embeddings.position_ids"] = torch.arange(16)[None]
    path = tmp_path / f"model{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = blank()
    assert load_vilt_weights(model, path) == "itm"
    assert_same_trunk(model, source)
    assert torch.equal(model.rank_output.weight, source.itm_head[0][1:])


@pytest.mark.parametrize("layout", [original, trunk])
def test_a_ranking_head_of_the_file_goes_first(source, tmp_path, layout):
    head = {"rank_output.weight": torch.full((1, WIDTH), 0.5), "rank_output.bias": torch.tensor([2.0])}
    model = blank()
    assert (
        load_vilt_weights(model, written(tmp_path / "irtr.ckpt", {**layout(source), **itm(source), **head}))
        == "rank_output"
    )
    assert torch.equal(model.rank_output.weight, head["rank_output.weight"]) and model.rank_output.bias.item() == 2.0
    assert torch.equal(model.itm_head[0], source.itm_head[0])
    model = blank()
    assert load_vilt_weights(model, written(tmp_path / "irtr.ckpt", {**layout(source), **head})) == "rank_output"
    assert model.itm_head is None


def test_without_any_head_the_ranking_head_keeps_its_random_start(source, tmp_path):
    model = blank()
    before = model.rank_output.weight.clone()
    assert load_vilt_weights(model, written(tmp_path / "mlm.ckpt", original(source))) == "random"
    assert torch.equal(model.rank_output.weight, before) and model.itm_head is None
    assert_same_trunk(model, source)


def test_half_precision_is_read_into_fp32(source, tmp_path):
    path = tmp_path / "half.safetensors"
    save_file({name: tensor.half() for name, tensor in {**trunk(source), **itm(source)}.items()}, path)
    model = blank()
    load_vilt_weights(model, path)
    assert {p.dtype for p in model.parameters()} == {torch.float32} == {t.dtype for t in model.itm_head}
    torch.testing.assert_close(model.vilt.pooler.dense.weight, source.vilt.pooler.dense.weight, atol=1e-3, rtol=1e-3)


# --- refusals ---

WRONG = [
    ("transformer.blocks.1.mlp.fc2.bias", None, r"1 missing keys: vilt\.encoder\.layer\.1\.output\.dense\.bias"),
    ("transformer.blocks.0.attn.qkv.weight", None, r"3 missing keys: .*attention\.attention\.query\.weight"),
    ("rank_output.bias", None, r"1 missing keys: rank_output\.bias"),
    ("classifier.weight", torch.zeros(3), r"1 unexpected keys: classifier\.weight"),
    ("transformer.blocks.0.gamma_1", torch.zeros(3), r"1 unexpected keys: transformer\.blocks\.0\.gamma_1"),
    ("transformer.blocks.3.norm1.bias", torch.zeros(32), r"1 unexpected keys: .*layer\.3\.layernorm_before\.bias"),
    ("train_irtr_loss.weight", torch.zeros(3), r"1 unexpected keys: train_irtr_loss\.weight"),
    ("transformer.pos_embed", torch.zeros(1, 17, 32), r"position_embeddings is \(1, 17, 32\), expected \(1, 10, 32\)"),
    (
        "transformer.blocks.2.attn.qkv.bias",
        torch.zeros(95),
        r"query\.bias is \(32,\).*|value\.bias is \(31,\), expected",
    ),
    (
        "token_type_embeddings.weight",
        torch.zeros(3, 32),
        r"token_type_embeddings\.weight is \(3, 32\), expected \(2, 32\)",
    ),
    ("itm_score.fc.weight", torch.zeros(2, 16), r"itm_score\.fc\.weight is \(2, 16\), expected \(2, 32\)"),
    ("itm_score.fc.bias", None, r"itm_score\.fc\.bias is missing, expected \(2,\)"),
]


@pytest.mark.parametrize(("name", "value", "told"), WRONG, ids=[f"{name}-{told[:9]}" for name, _, told in WRONG])
def test_a_partial_load_is_refused_by_name(source, tmp_path, name, value, told):
    state = {
        **original(source),
        **itm(source),
        "rank_output.weight": torch.ones(1, 32),
        "rank_output.bias": torch.ones(1),
    }
    state = {key: tensor for key, tensor in state.items() if key != name} | ({} if value is None else {name: value})
    model = blank()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    head = model.itm_head
    with pytest.raises(BackboneError, match=r"vilt\.ckpt.*nothing was loaded") as caught:
        load_vilt_weights(model, written(tmp_path / "vilt.ckpt", state))
    assert re.search(told, str(caught.value))
    assert (
        all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items()) and model.itm_head is head
    )


def test_a_foreign_file_says_how_much_fits_and_what_is_expected(tmp_path):
    path = written(tmp_path / "other.ckpt", {"layer.weight": torch.ones(2)})
    with pytest.raises(BackboneError, match=r"2 of \d+ names match; expected a ViLT for pretraining or retrieval"):
        load_vilt_weights(blank(), path)


def test_unknown_names_pass_through_the_mapping():
    assert set(vilt_names({"transformer.norm.weight": torch.ones(1), "new.weight": torch.ones(1)})) == {
        "vilt.layernorm.weight",
        "new.weight",
    }
