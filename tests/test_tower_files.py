"""Files of the unimodal towers: DINOv2 layouts and BERT folders."""

import pytest
import torch
from safetensors.torch import save_file

from petlbench.methods.backbones.base import BackboneError
from petlbench.methods.backbones.dinov2 import build_dinov2, load_dinov2
from petlbench.methods.backbones.minilm import build_bert, load_minilm

pytestmark = pytest.mark.usefixtures("one_thread")


class TestDinov2Files:
    @pytest.fixture
    def state(self):
        torch.manual_seed(0)
        return {key: torch.randn_like(value) for key, value in build_dinov2(64, 1, 3, 2).state_dict().items()}

    def old_names(self, state):
        pairs = [("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")]
        out = {}
        for key, value in state.items():
            for old, new in pairs:
                key = key.replace(f"attention.{new}.", f"attention.attention.{old}.")
            out[key.replace("attention.o_proj.", "attention.output.dense.")] = value
        return out

    @pytest.mark.parametrize("layout", ["new", "old", "parts"])
    def test_layouts(self, state, tmp_path, layout):
        content = state if layout == "new" else self.old_names(state)
        if layout == "parts":
            table = content.pop("embeddings.position_embeddings")
            content |= {"embeddings.pos_cls": table[:, :1].clone(), "embeddings.pos_patch": table[:, 1:].clone()}
        save_file({**content, "embeddings.mask_token": torch.zeros(1, 64)}, tmp_path / "vit.safetensors")
        loaded = load_dinov2(tmp_path / "vit.safetensors").state_dict()
        assert all(torch.equal(value, state[key]) for key, value in loaded.items())

    def test_blocks(self, state, tmp_path):
        save_file(state, tmp_path / "vit.safetensors")
        assert len(load_dinov2(tmp_path / "vit.safetensors", 2).encoder.layer) == 2
        with pytest.raises(BackboneError, match="blocks=4, but the file holds 3"):
            load_dinov2(tmp_path / "vit.safetensors", 4)

    def test_strict(self, state, tmp_path):
        path = tmp_path / "vit.safetensors"
        save_file({key: value for key, value in state.items() if "layer.1.norm1" not in key}, path)
        with pytest.raises(BackboneError, match=r"2 missing keys: encoder\.layer\.1\.norm1"):
            load_dinov2(path)
        save_file({"head.weight": torch.zeros(2)}, path)
        with pytest.raises(BackboneError, match=r"not a DINOv2 state dict.*found head\.weight"):
            load_dinov2(path)
        save_file({**state, "embeddings.position_embeddings": torch.zeros(1, 8, 64)}, path)
        with pytest.raises(BackboneError, match="side"):
            load_dinov2(path)


class TestMinilmFolder:
    CONFIG = (
        '{"model_type": "bert", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}'
    )

    def write(self, folder, **changes):
        torch.manual_seed(0)
        import json

        (folder / "config.json").write_text(self.CONFIG)
        state = build_bert(json.loads(self.CONFIG)).state_dict()
        extra = {"embeddings.position_ids": torch.arange(512)[None], "pooler.dense.bias": torch.zeros(16)}
        save_file(
            {f"bert.{key}": value for key, value in {**state, **extra, **changes}.items()}, folder / "model.safetensors"
        )
        return state

    def test_round_trip(self, tmp_path):
        state = self.write(tmp_path)
        loaded = load_minilm(tmp_path)
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())
        assert loaded.config.hidden_dropout_prob == loaded.config.attention_probs_dropout_prob == 0.0

    def test_strict(self, tmp_path):
        self.write(tmp_path, **{"cls.bias": torch.zeros(2)})
        with pytest.raises(BackboneError, match=r"1 unexpected keys: cls\.bias"):
            load_minilm(tmp_path)
        (tmp_path / "config.json").write_text('{"model_type": "t5"}')
        with pytest.raises(BackboneError, match="model_type is t5, expected bert"):
            load_minilm(tmp_path)
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(BackboneError, match="not valid JSON"):
            load_minilm(tmp_path)
