"""Weight files: what is refused, what is tolerated, and what is recorded."""

import copy
import hashlib
import pickle
import zipfile

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from petlbench.methods.backbones import open_clip_origin, weights_io
from petlbench.methods.backbones.base import BackboneError
from petlbench.methods.backbones.registry import load_backbone

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def small_architecture(monkeypatch):
    """open_clip's ViT-B-32 with two narrow blocks: the same key names, quick to build."""
    from open_clip import factory

    for name, extra in (("ViT-B-32", {}), ("ViT-B-32-quickgelu", {"quick_gelu": True})):
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, {**SMALL, **extra})
    monkeypatch.delenv(weights_io.WEIGHTS_ENV, raising=False)


@pytest.fixture(scope="module")
def clip_state():
    torch.manual_seed(0)
    vision, text = open_clip.CLIPVisionCfg(**SMALL["vision_cfg"]), open_clip.CLIPTextCfg(**SMALL["text_cfg"])
    state = open_clip.CLIP(16, vision, text).state_dict()
    return {key: torch.randn_like(value) * 0.02 for key, value in state.items()}


def refused(*parts, **options):
    with pytest.raises(BackboneError) as caught:
        load_backbone("ViT-B-32", **options)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


class TestClipFiles:
    @pytest.mark.parametrize("wrap", ["flat", "state_dict", "model", "module", "training"])
    def test_every_layout_loads_the_same_values(self, clip_state, tmp_path, wrap):
        content = {
            "flat": clip_state,
            "state_dict": {"state_dict": clip_state},
            "model": {"model": clip_state, "config": {"lr": 1e-3, "name": "x"}},
            "module": {f"module.{key}": value for key, value in clip_state.items()},
            "training": {
                "epoch": 3,
                "name": "run",
                "state_dict": {f"module.{key}": value for key, value in clip_state.items()},
                "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
            },
        }[wrap]
        path = tmp_path / "weights.pt"
        torch.save(content, path)
        model = load_backbone("ViT-B-32", weights=path, activation="gelu")
        for key, value in model.clip.state_dict().items():
            assert torch.equal(value, clip_state[key]), key
        assert model.aligned

    def test_provenance(self, clip_state, tmp_path, monkeypatch):
        path = tmp_path / "mine.safetensors"
        save_file(clip_state, path)
        monkeypatch.setenv(weights_io.WEIGHTS_ENV, str(tmp_path))
        one = load_backbone("ViT-B-32", weights="mine.safetensors", activation="quick_gelu").provenance
        two = load_backbone("ViT-B-32-quickgelu", weights=path).provenance
        assert one.sha256 == two.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (one.source, one.kind, one.architecture) == ("mine.safetensors", "open_clip", "ViT-B-32")
        assert one.activation == two.activation == "quick_gelu"
        assert (one.resolution, one.mean) == (32, (0.48145466, 0.4578275, 0.40821073))
        assert str(tmp_path) not in one.model_dump_json()

    def test_the_activation_is_really_used(self, clip_state, tmp_path):
        path = tmp_path / "mine.pt"
        torch.save({key: value * 20 for key, value in clip_state.items()}, path)
        images = torch.randn(2, 3, 32, 32)
        quick, plain = (
            load_backbone("ViT-B-32", weights=path, activation=kind).encode_image(images)
            for kind in ("quick_gelu", "gelu")
        )
        assert (quick - plain).abs().max() > 1e-4

    def test_half_precision_is_cast(self, clip_state, tmp_path):
        save_file({key: value.half() for key, value in clip_state.items()}, tmp_path / "half.safetensors")
        model = load_backbone("ViT-B-32", weights=tmp_path / "half.safetensors", activation="gelu")
        assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
        assert torch.equal(model.clip.visual.proj, clip_state["visual.proj"].half().float())

    def test_old_buffers_are_tolerated_by_name_only(self, clip_state, tmp_path):
        old = {
            "attn_mask": torch.full((16, 16), float("-inf")).triu(1),
            "input_resolution": torch.tensor(32),
            "vocab_size": torch.tensor(49408),
        }
        torch.save({**clip_state, **old}, tmp_path / "old.pt")
        load_backbone("ViT-B-32", weights=tmp_path / "old.pt", activation="gelu")
        torch.save({**clip_state, "visual.attn_mask": torch.zeros(1)}, tmp_path / "odd.pt")
        refused("1 unexpected keys: visual.attn_mask.", weights=tmp_path / "odd.pt", activation="gelu")

    def test_a_folder_is_no_weight_file(self, tmp_path):
        refused(f"{tmp_path}: is a folder, expected a weight file", weights=tmp_path, activation="gelu")

    def test_missing_unexpected_and_misshapen_are_all_listed(self, clip_state, tmp_path):
        broken = dict(clip_state)
        del broken["ln_final.bias"]
        broken["adapter.down.weight"] = torch.zeros(4)
        broken["visual.proj"] = torch.zeros(32, 8)
        torch.save(broken, tmp_path / "broken.pt")
        refused(
            "broken.pt does not fit CLIP; nothing was loaded",
            "1 missing keys: ln_final.bias.",
            "1 unexpected keys: adapter.down.weight.",
            "1 differing shapes: visual.proj is (32, 8), expected (32, 16).",
            weights=tmp_path / "broken.pt",
            activation="gelu",
        )

    def test_long_lists_are_counted(self, clip_state, tmp_path):
        vision = {key: value for key, value in clip_state.items() if key.startswith("visual")}
        torch.save(vision, tmp_path / "vision.pt")
        n = len(clip_state) - len(vision)
        refused(f"{n} missing keys: ", f"and {n - 10} more.", weights=tmp_path / "vision.pt", activation="gelu")

    def test_a_refused_file_changes_nothing(self, clip_state):
        model = open_clip.CLIP(
            16, open_clip.CLIPVisionCfg(**SMALL["vision_cfg"]), open_clip.CLIPTextCfg(**SMALL["text_cfg"])
        )
        before = copy.deepcopy(model.state_dict())
        for changed in ({"x": torch.zeros(1)}, {"ln_final.bias": torch.zeros(3)}):
            with pytest.raises(BackboneError):
                weights_io.load_strict(model, {**clip_state, **changed}, "file")
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def test_another_resolution_is_refused_unless_asked_for(self, clip_state, tmp_path):
        path = tmp_path / "large.pt"
        torch.save({**clip_state, "visual.positional_embedding": torch.randn(8 * 8 + 1, 32)}, path)
        refused("large.pt was made for 64 px", "8 x 8 patches", "resolution=64", weights=path, activation="gelu")
        same = load_backbone("ViT-B-32", weights=path, activation="gelu", resolution=64)
        assert torch.equal(same.clip.visual.positional_embedding, torch.load(path)["visual.positional_embedding"])
        resized = load_backbone("ViT-B-32", weights=path, activation="gelu", resolution=48)
        assert resized.clip.visual.positional_embedding.shape == (37, 32)
        assert (same.resolution, resized.resolution) == (64, 48)
        assert resized.encode_image(torch.randn(1, 3, 48, 48)).shape == (1, 16)
        torch.save({**clip_state, "visual.positional_embedding": torch.randn(12, 32)}, path)
        refused("12 rows", "square grid", weights=path, activation="gelu", resolution=64)


class TestActivation:
    @pytest.mark.parametrize(
        ("file", "needs"),
        [
            ("RS5M_ViT-B-32.pt", "quick_gelu"),
            ("RS5M_ViT-B-32_RET-2.pt", "quick_gelu"),
            ("RemoteCLIP-ViT-B-32.pt", "gelu"),
        ],
    )
    def test_known_files(self, clip_state, tmp_path, file, needs):
        torch.save(clip_state, tmp_path / file)
        model = load_backbone("ViT-B-32", weights=tmp_path / file)
        assert model.provenance.activation == needs
        assert type(model.clip.visual.transformer.resblocks[0].mlp.gelu).__name__.lower() == needs.replace("_", "")
        wrong = {"gelu": "quick_gelu", "quick_gelu": "gelu"}[needs]
        refused(f"activation={wrong}", file, f"needs {needs}", weights=tmp_path / file, activation=wrong)
        if needs == "gelu":
            with pytest.raises(BackboneError, match=r"use ViT-B-32$"):
                load_backbone("ViT-B-32-quickgelu", weights=tmp_path / file)

    def test_an_unknown_file_must_be_told(self, clip_state, tmp_path):
        torch.save(clip_state, tmp_path / "mine.pt")
        refused("mine.pt", "activation=quick_gelu", "activation=gelu", weights=tmp_path / "mine.pt")

    def test_tags_bring_their_own(self, clip_state, tmp_path, monkeypatch):
        save_file(clip_state, tmp_path / "open_clip_model.safetensors")
        fetched = []

        def fetch(entry):
            fetched.append(entry["hf_hub"])
            return str(tmp_path / "open_clip_model.safetensors")

        monkeypatch.setattr(open_clip, "download_pretrained", fetch)
        openai = load_backbone("ViT-B-32:openai").provenance
        laion = load_backbone("ViT-B-32", pretrained="laion2b_s34b_b79k").provenance
        assert (openai.activation, laion.activation) == ("quick_gelu", "gelu")
        assert (openai.source, laion.source) == ("ViT-B-32:openai", "ViT-B-32:laion2b_s34b_b79k")
        assert fetched == ["timm/vit_base_patch32_clip_224.openai/", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K/"]
        assert len(openai.sha256) == 64

    def test_an_unreachable_hub_is_reported(self, monkeypatch):
        def fetch(entry):
            raise FileNotFoundError("no route")

        monkeypatch.setattr(open_clip, "download_pretrained", fetch)
        refused("ViT-B-32:openai could not be fetched", "no route", "weights=FILE", pretrained="openai")


class _Marker:
    """Unpickling this would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


class TestUnsafeFiles:
    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
    @pytest.mark.parametrize("save", ["torch", "legacy", "pickle"])
    def test_code_in_a_file_never_runs(self, tmp_path, suffix, save):
        marker, path = tmp_path / "ran", tmp_path / f"evil{suffix}"
        content = {"state_dict": {"a": _Marker(str(marker))}}
        if save == "pickle":
            path.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=save == "torch")
        with pytest.raises(BackboneError, match=rf"evil{suffix}: cannot be read as a plain table.*never run"):
            weights_io.read_state_dict(path)
        assert not marker.exists()

    def test_torchscript_is_refused_with_advice(self, tmp_path):
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "ViT-B-32.pt")
        refused("TorchScript", "ViT-B-32:openai", weights=tmp_path / "ViT-B-32.pt", activation="quick_gelu")

    def test_damaged_files(self, tmp_path):
        for name, content in (("a.safetensors", b"junk"), ("b.pt", b"junk"), ("c.pt", b""), ("d.npz", b"")):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(BackboneError, match=name):
                weights_io.read_state_dict(tmp_path / name)
        whole = tmp_path / "e.pt"
        torch.save({"a": torch.zeros(1000)}, whole)
        (tmp_path / "f.pt").write_bytes(whole.read_bytes()[:2000])
        with pytest.raises(BackboneError, match=r"f\.pt"):
            weights_io.read_state_dict(tmp_path / "f.pt")
        with zipfile.ZipFile(tmp_path / "g.pt", "w") as archive:
            archive.writestr("readme", "no weights here")
        with pytest.raises(BackboneError, match=r"g\.pt"):
            weights_io.read_state_dict(tmp_path / "g.pt")

    @pytest.mark.parametrize(
        ("content", "part"),
        [
            ([1, 2], "holds a list"),
            ({}, "empty"),
            ({"a": 1, "b": torch.zeros(1)}, "a (int)"),
            ({"a": torch.tensor([1.0, float("nan")])}, "tensor a holds NaN"),
        ],
    )
    def test_foreign_content(self, tmp_path, content, part):
        torch.save(content, tmp_path / "odd.pt")
        with pytest.raises(BackboneError) as caught:
            weights_io.read_state_dict(tmp_path / "odd.pt")
        assert part in str(caught.value)


class TestHashes:
    def test_of_tensors(self):
        one = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
        assert weights_io.tensors_sha256(one) == weights_io.tensors_sha256(dict(reversed(one.items())))
        changes = (
            {"a": torch.arange(4.0) + 1e-6},
            {"b": torch.ones(4)},
            {"a": torch.arange(4.0).double()},
            {"c": torch.ones(1)},
        )
        assert len({weights_io.tensors_sha256({**one, **change}) for change in ({}, *changes)}) == 5

    def test_of_scalars_and_half_precision(self):
        assert len(weights_io.tensors_sha256({"s": torch.tensor(1.0), "h": torch.ones(3).bfloat16()})) == 64


@pytest.mark.slow
def test_full_size_file_round_trip(tmp_path, monkeypatch):
    """A GeoRSCLIP-shaped file of the real ViT-B/32, written and read back by path."""
    monkeypatch.undo()
    source = load_backbone("ViT-B-32", pretrained="random", seed=1)
    torch.save(source.clip.state_dict(), tmp_path / "RS5M_ViT-B-32_RET-2.pt")
    model = load_backbone("ViT-B-32", weights=tmp_path / "RS5M_ViT-B-32_RET-2.pt")
    assert model.provenance.activation == "quick_gelu"
    assert open_clip_origin.KNOWN_FILES["RS5M_ViT-B-32*"][0] == "quick_gelu"
    for key, value in source.clip.state_dict().items():
        assert torch.equal(model.clip.state_dict()[key], value), key


def test_safetensors_and_pickle_read_alike(clip_state, tmp_path):
    save_file(clip_state, tmp_path / "a.safetensors")
    torch.save(clip_state, tmp_path / "a.pt")
    one, two = (weights_io.read_state_dict(tmp_path / f"a.{suffix}") for suffix in ("safetensors", "pt"))
    assert weights_io.tensors_sha256(one) == weights_io.tensors_sha256(two) == weights_io.tensors_sha256(clip_state)
    assert load_file(tmp_path / "a.safetensors").keys() == one.keys()
