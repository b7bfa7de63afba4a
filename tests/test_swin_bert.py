"""The towers of PIR: the forward pass, the files that are read, and what is refused."""

import shutil

import pytest
import torch
from golden.fill import inputs
from joint_files import write_text_tower

from petlbench.harness.contract_data import fake_batch
from petlbench.methods.backbones import registry
from petlbench.methods.backbones.base import BackboneError, Tokens
from petlbench.methods.backbones.minilm import build_bert
from petlbench.methods.backbones.random_models import random_swin_bert
from petlbench.methods.backbones.swin import build_swin
from petlbench.methods.backbones.swin_bert_files import load_bert_weights, load_swin_weights, locate_bert
from petlbench.methods.layers.joint_tokens import image_tokens, text_tokens

pytestmark = pytest.mark.usefixtures("one_thread")

BERT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def swin():
    return build_swin(16, (2, 2), (2, 2), 56).eval()


# --- towers ---


@torch.no_grad()
def test_towers_equal_their_libraries_own_forward():
    model = random_swin_bert()
    images, tokens = fake_batch(model).images, fake_batch(model).tokens
    features = model.vision.forward_features(images).flatten(1, 2)
    found = model.image.tokens(images)
    assert found.shape == (8, 50, 32)
    torch.testing.assert_close(found[:, 1:], features)
    torch.testing.assert_close(found[:, 0], features.mean(1))
    torch.testing.assert_close(model.image.pooled(images), features.mean(1))
    own = model.language(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
    torch.testing.assert_close(model.text.tokens(tokens)[tokens.mask], own[tokens.mask], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.text.pooled(tokens), own[:, 0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_token_goes_through_the_projection_of_the_pooled_output():
    model = random_swin_bert()
    batch = fake_batch(model)
    image, text = image_tokens(model, batch.images), text_tokens(model, batch.tokens)
    torch.testing.assert_close(image.pooled, model.encode_image(batch.images))
    torch.testing.assert_close(image.tokens[:, 0], image.pooled, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text.tokens[:, 0], model.encode_text(batch.tokens), atol=1e-5, rtol=1e-5)
    assert text.read_at is None and text.mask is batch.tokens.mask


@torch.no_grad()
def test_padding_is_masked():
    model = random_swin_bert()
    tokens = fake_batch(model).tokens
    noisy = Tokens(torch.where(tokens.mask, tokens.ids, 7), tokens.mask)
    torch.testing.assert_close(model.encode_text(noisy), model.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_projections_and_temperature_are_new_and_seeded():
    one, other = random_swin_bert(0), random_swin_bert(1)
    assert sorted(one.new_parameters()) == [
        "temp",
        "text_proj.bias",
        "text_proj.weight",
        "vision_proj.bias",
        "vision_proj.weight",
    ]
    assert not torch.equal(one.vision_proj.weight, other.vision_proj.weight) and not one.aligned
    assert one.logit_scale.exp().item() == pytest.approx(1 / 0.07, rel=1e-6)


def test_dropout_and_stochastic_depth_act_in_training_only():
    model = random_swin_bert()
    batch = fake_batch(model)
    torch.manual_seed(0)
    for encode, given in ((model.encode_image, batch.images), (model.encode_text, batch.tokens)):
        model.eval()
        assert torch.equal(encode(given), encode(given))
        model.train()
        assert not torch.equal(encode(given), encode(given))


def test_nothing_can_be_attached_to_swin_and_its_layers_have_names():
    model = random_swin_bert()
    with pytest.raises(BackboneError, match="nothing can be attached to the blocks of Swin"):
        model.image.attach(0, "mlp", torch.nn.Identity())
    names = dict(model.named_modules())
    for tower in (model.image, model.text):
        for index in range(tower.depth):
            for kind in ("attention", "mlp"):
                linears = tower.linears(index, kind)
                assert len(linears) >= 2 and all(name in names for name in linears)


# --- files ---


def microsoft_names(state):
    """As Microsoft's files have it: merging at the end of the stage before, tables and a classifier beside."""
    found = {n.replace("layers.1.downsample", "layers.0.downsample"): t for n, t in state.items()}
    table = "layers.0.blocks.{}.attn.relative_position_index"
    extra = {table.format(i): torch.zeros(49, 49, dtype=torch.int64) for i in range(2)}
    return {**found, **extra, "layers.0.blocks.1.attn_mask": torch.zeros(4, 49, 49), "head.weight": torch.ones(3, 32)}


@pytest.mark.parametrize("names", [microsoft_names, dict])
def test_swin_is_read_in_both_layouts(tmp_path, names):
    torch.manual_seed(1)
    source, target = swin(), swin()
    path = tmp_path / "swin.pth"
    torch.save({"model": names(source.state_dict())}, path)
    load_swin_weights(target, path)
    images = inputs((1, 3, 56, 56), 0)
    with torch.no_grad():
        assert torch.equal(source(images), target(images))


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_bert_is_read_with_and_without_prefix(tmp_path, prefix):
    source, target = build_bert(BERT), build_bert(BERT)
    old = {n.replace("LayerNorm.weight", "LayerNorm.gamma"): t for n, t in source.state_dict().items()}
    old = {prefix + n.replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in old.items()}
    path = tmp_path / "pytorch_model.bin"
    torch.save({**old, prefix + "pooler.dense.bias": torch.ones(16), "cls.predictions.bias": torch.ones(40)}, path)
    load_bert_weights(target, path)
    own = target.state_dict()
    assert all(torch.equal(own[n], t) for n, t in source.state_dict().items())


@pytest.mark.parametrize(
    ("make", "load"), [(swin, load_swin_weights), (lambda: build_bert(BERT), load_bert_weights)], ids=["swin", "bert"]
)
def test_a_file_that_matches_nothing_is_an_error(tmp_path, make, load):
    path = tmp_path / "other.pth"
    torch.save({f"0.{n}": t for n, t in make().state_dict().items()}, path)
    target = make()
    before = {n: t.clone() for n, t in target.state_dict().items()}
    with pytest.raises(BackboneError, match=rf"nothing was loaded.*\b0 of {len(before)} names match"):
        load(target, path)
    assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())


def test_bert_needs_weights_and_a_tokenizer(tmp_path):
    with pytest.raises(BackboneError, match=r"holds none of model\.safetensors, pytorch_model\.bin"):
        locate_bert(str(tmp_path))
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(BackboneError, match="the tokenizer is missing"):
        locate_bert(str(tmp_path))
    (tmp_path / "vocab.txt").touch()
    assert locate_bert(str(tmp_path)) == (tmp_path, tmp_path / "pytorch_model.bin")
    assert locate_bert(str(tmp_path / "pytorch_model.bin"))[0] == tmp_path


@pytest.mark.parametrize("kept", ["vocab.txt", "tokenizer.json"])
def test_either_tokenizer_file_alone_will_do(tmp_path, kept):
    from petlbench.methods.backbones.minilm import BertTokenizer

    whole = write_text_tower(tmp_path / "whole")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(whole / kept, alone)
    said = [BertTokenizer(folder, 8)(["a red port", ""]) for folder in (whole, alone)]
    assert torch.equal(said[0].ids, said[1].ids) and torch.equal(said[0].mask, said[1].mask)
    assert said[0].mask.sum(1).tolist() == [5, 2]


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path):
    from petlbench.methods.backbones.minilm import BertTokenizer

    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(BackboneError, match=rf"{tmp_path}: its tokenizer cannot be read"):
        BertTokenizer(tmp_path)


# --- registry ---


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, "weights and text_weights not given, and untrained towers are never taken in silence"),
        ({"text_weights": "bert"}, "weights not given"),
        ({"pretrained": "openai"}, "pretrained=openai is unknown"),
        ({"pretrained": "random", "weights": "swin.pth"}, "pretrained=random contradicts weights"),
        ({"pretrained": "random", "resolution": 200}, "resolution=200 is not a multiple of 224"),
        ({"weights": "absent.pth", "text_weights": "bert"}, r"absent\.pth was not found"),
        ({"pretrained": "random", "blocks": 3}, "has no option blocks"),
    ],
)
def test_bad_options_are_explained(options, told):
    for call in (registry.describe_backbone, registry.load_backbone):
        with pytest.raises(BackboneError, match=told):
            call("swin-bert", **options)


def test_it_is_listed_and_described():
    assert "swin-bert" in {info.name for info in registry.list_backbones()}
    info = registry.describe_backbone("swin-bert", pretrained="random")
    assert (info.kind, info.aligned, info.options) == ("swin_bert", False, {"pretrained": "random", "resolution": 224})


def test_files_are_found_through_the_registry(tmp_path):
    (tmp_path / "swin.pth").touch()
    for name in ("model.safetensors", "vocab.txt"):
        (tmp_path / name).touch()
    info = registry.describe_backbone("swin-bert", weights=tmp_path / "swin.pth", text_weights=tmp_path)
    assert info.options["weights"].endswith("swin.pth") and info.options["text_weights"] == str(tmp_path)
