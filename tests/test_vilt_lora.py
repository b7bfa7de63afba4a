"""LoRA and LayerNorm tuning of ViLT inside peft."""

import copy
import json
import warnings

import peft
import pytest
import torch
from built_models import built, disturb
from safetensors.torch import save_file
from transformers import ViltForImageAndTextRetrieval
from vilt_forms import scores

from petlbench.harness.contract_data import fake_batch
from petlbench.methods.backbones.random_models import random_vilt
from petlbench.methods.vilt_adapter import ViltAdapter
from petlbench.methods.vilt_full import ViltFull, ViltFullConfig
from petlbench.methods.vilt_lora import ViltLora, ViltLoraConfig
from petlbench.methods.vilt_prompt import ViltPrompt

pytestmark = pytest.mark.usefixtures("one_thread")
IN_PEFT = [
    ViltLora(),
    ViltLora(ViltLoraConfig(rank=3, alpha=5.0, targets="all")),
    ViltLora(ViltLoraConfig(targets="mlp", train_pooler=True)),
    ViltFull(ViltFullConfig(parts="layer_norm")),
]


def retrieval_model(backbone):
    """transformers' own retrieval model, with its eager attention, holding the same weights."""
    model = ViltForImageAndTextRetrieval(copy.deepcopy(backbone.vilt.config))
    model.vilt.embeddings.text_embeddings.LayerNorm.eps = backbone.vilt.embeddings.text_embeddings.LayerNorm.eps
    model.load_state_dict(backbone.state_dict())
    return model.eval()


def retrieval_scores(model, batch):
    side = batch.images.shape[-1]
    with torch.no_grad():
        return model(
            input_ids=batch.tokens.ids,
            attention_mask=batch.tokens.mask.long(),
            pixel_values=batch.images,
            pixel_mask=torch.ones(len(batch), side, side, dtype=torch.long),
        ).logits[:, 0]


@pytest.mark.parametrize("method", IN_PEFT, ids=["qv", "all", "mlp_pooler", "layer_norm"])
def test_what_is_stored_opens_in_peft_and_scores_the_same(method, tmp_path):
    backbone = random_vilt()
    theirs, batch = retrieval_model(backbone), fake_batch(backbone)
    model = built(method, backbone)
    untouched = scores(method, model, batch)
    assert torch.allclose(retrieval_scores(theirs, batch), untouched, atol=1e-5)
    disturb(model)
    form = method.peft_format(model)
    parameters = dict(model.named_parameters())
    assert set(form.keys) == set(method.trainable(model))
    tensors = {key: parameters[name].detach().contiguous() for name, key in form.keys.items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(dict(form.config)), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        warnings.filterwarnings("error", message=".*unexpected keys.*")
        opened = peft.PeftModel.from_pretrained(theirs, tmp_path)
    expected = scores(method, model, batch)
    assert torch.allclose(retrieval_scores(opened.eval(), batch), expected, atol=1e-5)
    assert (expected - untouched).abs().max() > 1e-2


@pytest.mark.parametrize(
    "method",
    [
        ViltLora(ViltLoraConfig(itm_weight=1)),
        ViltFull(),
        ViltFull(ViltFullConfig(parts="bias")),
        ViltAdapter(),
        ViltPrompt(),
    ],
    ids=["lora_itm", "full", "bias", "adapter", "prompt"],
)
def test_what_peft_cannot_open_has_no_peft_format(method):
    assert method.peft_format(method.build(random_vilt())) is None


@pytest.mark.parametrize(
    ("targets", "ends"),
    [
        ("qv", {"query", "value"}),
        ("qkv", {"query", "key", "value"}),
        ("qkvo", {"query", "key", "value", "attention.output.dense"}),
        ("mlp", {"intermediate.dense", "output.dense"}),
        ("all", {"query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"}),
    ],
)
def test_lora_sits_on_the_layers_that_are_asked_for(targets, ends):
    method = ViltLora(ViltLoraConfig(targets=targets))
    names = method.tuned(method.build(random_vilt(blocks=1)))
    places = {
        name.partition("layer.0.")[2].partition(".lora")[0].removeprefix("attention.attention.") for name in names
    }
    assert places == ends
