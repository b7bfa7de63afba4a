"""LoRA and its kin: packed attention against PyTorch's, the modules against peft's, stored adapters inside peft."""

import copy
import json
import math
import warnings

import peft
import pytest
import torch
from built_models import built, disturb
from lora_parts import RANDOM, embed
from safetensors.torch import save_file
from torch import nn

from petlbench.harness.contract_data import fake_batch
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.backbones.shapes import shape_only
from petlbench.methods.base import MethodError
from petlbench.methods.clip_lora import ClipLora
from petlbench.methods.dora import Dora, DoraConfig
from petlbench.methods.ia3 import Ia3, Ia3Config
from petlbench.methods.layer_norm import LayerNormConfig, LayerNormTuning
from petlbench.methods.layers.packed_attention import PARTS, PackedAttention
from petlbench.methods.layers.packed_lora import PackedDora, PackedLora
from petlbench.methods.lora import Lora, LoraConfig
from petlbench.methods.vera import Vera, VeraConfig
from petlbench.methods.zero_shot import ZeroShot

WIDTH, HEADS, ROWS, LENGTH = 16, 2, 3, 5
LINEAR = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out_proj": "o_proj"}
pytestmark = pytest.mark.usefixtures("one_thread")


def attention(seed=0):
    torch.manual_seed(seed)
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    nn.init.normal_(module.in_proj_bias)
    nn.init.normal_(module.out_proj.bias)
    return module.requires_grad_(False)


class Split(nn.Module):
    """The same attention with four linear layers, on which peft works."""

    def __init__(self, packed):
        super().__init__()
        weights = dict(
            zip("qkv", zip(packed.in_proj_weight.chunk(3), packed.in_proj_bias.chunk(3), strict=True), strict=True)
        )
        weights["out_proj"] = (packed.out_proj.weight, packed.out_proj.bias)
        for part, (weight, bias) in weights.items():
            layer = nn.Linear(WIDTH, WIDTH)
            with torch.no_grad():
                layer.weight.copy_(weight)
                layer.bias.copy_(bias)
            setattr(self, LINEAR[part], layer.requires_grad_(False))

    def forward(self, x):
        parts = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k, v = parts
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(2))


# --- packed attention ---


def masks():
    causal = torch.full((LENGTH, LENGTH), float("-inf")).triu_(1)
    torch.manual_seed(3)
    return {
        "none": None,
        "causal": causal,
        "boolean": causal.bool(),
        "per head": torch.randn(ROWS * HEADS, LENGTH, LENGTH),
    }


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("training", [True, False])
def test_packed_attention_is_pytorchs(mask, training):
    module = attention().train(training)
    x = torch.randn(ROWS, LENGTH, WIDTH, requires_grad=True)
    expected = module(x, x, x, need_weights=False, attn_mask=masks()[mask])[0]
    found, maps = PackedAttention(module)(x, x, x, need_weights=False, attn_mask=masks()[mask])
    assert maps is None
    assert torch.allclose(found, expected, atol=1e-6)
    weight = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, expected))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_packed_attention_refuses_what_it_does_not_compute():
    module, x = PackedAttention(attention()), torch.randn(ROWS, LENGTH, WIDTH)
    for arguments in ({"need_weights": True}, {"key_padding_mask": torch.zeros(ROWS, LENGTH).bool()}):
        with pytest.raises(MethodError, match="only self-attention without attention maps"):
            module(x, x, x, **arguments)
    with pytest.raises(MethodError, match="another key or value: True"):
        module(x, x.clone(), x)
    for other in (nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2, batch_first=True, kdim=6)):
        with pytest.raises(MethodError, match="expected a batch-first"):
            PackedAttention(other)


# --- against peft, on a copy of the attention with a linear layer per projection ---


def peft_lora(split, parts):
    peft.inject_adapter_in_model(peft.LoraConfig(r=3, lora_alpha=5, target_modules=[LINEAR[p] for p in parts]), split)


def peft_dora(split, parts):
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=[LINEAR[p] for p in parts], use_dora=True)
    peft.inject_adapter_in_model(config, split)


def peft_ia3(split, parts):
    config = peft.IA3Config(target_modules=[LINEAR[p] for p in parts], feedforward_modules=[])
    peft.inject_adapter_in_model(config, split)


def peft_vera(split, parts):
    config = peft.VeraConfig(r=3, target_modules=[LINEAR[p] for p in parts], projection_prng_key=7)
    peft.VeraModel(split, config, "default")


def our_ia3(packed, parts):
    backbone = random_clip(width=WIDTH)
    Ia3(Ia3Config(targets="attention", towers="image")).build(backbone)
    stand_in = backbone.get_submodule("clip.visual.transformer.resblocks.0.attn")
    stand_in.base_layer = packed
    return stand_in


def our_vera(packed, parts):
    letters = "".join("o" if p == "out_proj" else p for p in parts)
    backbone = random_clip(width=WIDTH)
    Vera(VeraConfig(rank=3, key=7, projections=letters, towers="image")).build(backbone)
    stand_in = backbone.get_submodule("clip.visual.transformer.resblocks.0.attn")
    stand_in.base_layer = packed
    return stand_in


@pytest.mark.parametrize(
    ("ours", "theirs", "parts", "renamed"),
    [
        (lambda a, p: PackedLora(a, 3, 5 / 3, p), peft_lora, ("q", "v"), {}),
        (lambda a, p: PackedLora(a, 3, 5 / 3, p), peft_lora, PARTS, {}),
        (lambda a, p: PackedDora(a, 3, 5 / 3, p), peft_dora, ("q", "k", "v"), {}),
        (lambda a, p: PackedDora(a, 3, 5 / 3, p), peft_dora, PARTS, {}),
        (our_ia3, peft_ia3, ("k", "v"), {}),
        (our_vera, peft_vera, ("q", "v"), {}),
        (our_vera, peft_vera, PARTS, {}),
    ],
)
def test_packed_module_is_pefts_on_split_projections(ours, theirs, parts, renamed):
    packed = attention()
    module, split = ours(packed, parts), Split(packed)
    theirs(split, parts)
    given = {n: p for n, p in split.named_parameters() if p.requires_grad}
    mine = {n: p for n, p in module.named_parameters() if n.rpartition(".")[2] in PARTS}
    assert len(given) == len(mine)
    pairs = []
    torch.manual_seed(5)
    for name, parameter in mine.items():
        kind, part = name.rsplit(".", 1)
        (other,) = [p for n, p in given.items() if n.startswith(f"{LINEAR[part]}.{kind}.")]
        assert torch.allclose(parameter.flatten(), other.flatten(), atol=1e-6) or kind == "lora_A"  # the same start
        value = parameter.detach() + 0.3 * torch.randn_like(parameter)
        with torch.no_grad():
            parameter.copy_(value)
            other.copy_(value.reshape(other.shape))
        pairs.append((parameter, other))
    x = torch.randn(ROWS, LENGTH, WIDTH)
    found, expected = module(x, x, x)[0], split(x)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not torch.allclose(found, packed(x, x, x, need_weights=False)[0], atol=1e-2)
    weight = torch.randn_like(found)
    gradients = torch.autograd.grad((found * weight).sum(), [p for p, _ in pairs])
    wanted = torch.autograd.grad((expected * weight).sum(), [p for _, p in pairs])
    for a, b in zip(gradients, wanted, strict=True):
        assert torch.allclose(a.flatten(), b.flatten(), atol=1e-5)


def test_what_peft_does_with_packed_attention():
    """The reason for modules of our own; a failure here says that peft has caught up."""
    for config, says in (
        (peft.LoraConfig(target_modules=["attn"], use_dora=True), "does not support DoRA"),
        (peft.IA3Config(target_modules=["attn"], feedforward_modules=[]), "is not supported"),
    ):
        with pytest.raises(ValueError, match=says):
            peft.inject_adapter_in_model(config, random_clip())
    with pytest.raises(ValueError, match="No layers types compatible"):
        peft.VeraModel(random_clip(), peft.VeraConfig(r=2, target_modules=["attn"]), "default")
    backbone, batch = random_clip(), fake_batch(random_clip())
    before = embed(ZeroShot(), backbone, batch)
    config = peft.IA3Config(target_modules=["out_proj"], feedforward_modules=[], init_ia3_weights=False)
    peft.inject_adapter_in_model(config, backbone)
    assert torch.equal(embed(ZeroShot(), backbone, batch), before)  # accepted, and without any effect


# --- stored adapters inside peft ---


STORED = [
    ("open_clip", Lora(LoraConfig(rank=2))),
    ("open_clip", Lora(LoraConfig(rank=2, targets="both"))),
    ("open_clip", Lora(LoraConfig(rank=2, targets="mlp", dropout=0.1))),
    ("open_clip", Lora(LoraConfig(rank=2, towers="text"))),
    ("open_clip", Dora(DoraConfig(rank=2, targets="mlp"))),
    ("open_clip", Ia3(Ia3Config(targets="mlp"))),
    ("open_clip", Vera(VeraConfig(rank=2, targets="mlp"))),
    ("open_clip", LayerNormTuning()),
    ("open_clip", LayerNormTuning(LayerNormConfig(towers="text"))),
    ("two_tower", Lora(LoraConfig(rank=2, targets="both"))),
    ("two_tower", Lora(LoraConfig(rank=2, projections="qv", joint=False))),
    ("two_tower", ClipLora()),
    ("two_tower", Dora(DoraConfig(rank=2, targets="both"))),
    ("two_tower", Ia3()),
    ("two_tower", Vera(VeraConfig(rank=2))),
    ("two_tower", LayerNormTuning()),
]


def out_proj_factor():
    """2 where peft adds the update of a packed output projection twice (huggingface/peft pull request 3774), else 1."""
    holder = nn.ModuleDict({"attn": attention()})
    config = peft.LoraConfig(r=1, target_modules=["attn"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, holder)
    output = holder["attn"].base_layer.out_proj
    before, update = output.base_layer.weight.clone(), output.get_delta_weight("default").detach()
    holder["attn"].merge()
    factor = ((output.base_layer.weight - before) / update).median().item()
    assert factor == pytest.approx(1, abs=1e-3) or factor == pytest.approx(2, abs=1e-3)
    return round(factor)


@pytest.mark.parametrize(("kind", "method"), STORED, ids=lambda v: v if isinstance(v, str) else type(v).__name__)
def test_a_stored_adapter_opens_in_peft(kind, method, tmp_path):
    backbone = RANDOM[kind]()
    plain, batch = copy.deepcopy(backbone), fake_batch(backbone)
    model = built(method, backbone)
    heads = list(backbone.new_parameters())
    for name in heads:
        model.get_parameter(name).requires_grad_(True)
    disturb(model)
    form = method.peft_format(model)
    parameters = dict(model.named_parameters())
    assert set(form.keys) == {*method.trainable(model), *heads}
    assert len(set(form.keys.values())) == len(form.keys)
    save_file(
        {key: parameters[n].detach().contiguous() for n, key in form.keys.items()},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps(dict(form.config)), encoding="utf-8")
    root = plain.clip if kind == "open_clip" else plain
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        warnings.filterwarnings("error", message=".*unexpected keys.*")
        peft.PeftModel.from_pretrained(root, tmp_path)  # changes `root` in place
    with torch.no_grad():
        for name, parameter in parameters.items():
            if name.endswith("lora_B.out_proj"):
                parameter.mul_(out_proj_factor())
    expected, found = embed(method, model, batch), embed(ZeroShot(), plain.eval(), batch)
    assert torch.allclose(found, expected, atol=1e-5)
    assert (found - embed(ZeroShot(), RANDOM[kind](), batch)).abs().max() > 1e-2


@pytest.mark.parametrize(
    "method",
    [Lora(LoraConfig(joint=False)), ClipLora(), Dora(), Dora(DoraConfig(targets="both")), Ia3(), Vera()],
    ids=lambda m: type(m).__name__,
)
def test_what_peft_cannot_open_has_no_peft_format(method):
    assert method.peft_format(built(method, random_clip())) is None


# --- configuration ---


def test_joint_updates_take_all_projections():
    with pytest.raises(ValueError, match="set joint=false"):
        LoraConfig(projections="qv")
    LoraConfig(projections="qv", targets="mlp")  # no attention, so nothing to join
    names = list(
        Lora(LoraConfig(projections="qv", joint=False)).trainable(
            Lora(LoraConfig(projections="qv", joint=False)).build(random_clip())
        )
    )
    assert {n.rsplit(".", 1)[1] for n in names} == {"q", "v"}


def test_vera_draws_its_frozen_pair_from_the_seed_or_the_key():
    def pair(seed, key=None, kind="open_clip"):
        model = built(Vera(VeraConfig(rank=3, key=key)), RANDOM[kind](), seed)
        state = {n: t for n, t in model.state_dict().items() if n.endswith(("pair.A", "vera_A.default"))}
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        assert state and not trained & state.keys()
        return next(iter(state.values()))

    for kind in RANDOM:
        assert torch.equal(pair(0, kind=kind), pair(0, kind=kind))
        assert not torch.equal(pair(0, kind=kind), pair(1, kind=kind))
        assert torch.equal(pair(0, 5, kind), pair(1, 5, kind))
    assert torch.equal(pair(0, 5, "open_clip"), pair(0, 5, "two_tower"))  # the same widths, so peft's own values


def test_vera_stores_its_pair_once():
    model = built(Vera(VeraConfig(rank=3)), random_clip())
    pairs = {id(m.pair) for m in model.modules() if hasattr(m, "pair")}
    assert len(pairs) == 1


def test_ia3_scales_keys_values_and_hidden_layers():
    names = list(Ia3().trainable(built(Ia3(), random_clip())))
    places = {n.partition("resblocks.0.")[2] for n in names} - {""}
    assert places == {"attn.ia3_l.k", "attn.ia3_l.v", "mlp.c_proj.ia3_l.default"}
    names = list(Ia3().trainable(built(Ia3(), random_two_tower())))
    places = {n.partition("language.encoder.layer.0.")[2] for n in names} - {""}
    assert places == {
        "attention.self.key.ia3_l.default",
        "attention.self.value.ia3_l.default",
        "output.dense.ia3_l.default",
    }


@pytest.mark.parametrize(("cls", "config", "printed"), [(Lora, LoraConfig, 294_912), (Vera, VeraConfig, 24_576)])
def test_published_forms_have_their_printed_size_on_a_vit_b(cls, config, printed):
    # Kopiczko et al. 2024, Table 5: 294.9K for LoRA and 24.6K for VeRA on q and v of a ViT-B, heads not counted
    form = config.model_validate({**cls.presets["paper"].method, "towers": "image"})
    assert cls(form).expected_trainable(shape_only("ViT-B-32")) == printed


def test_paper_preset_of_dora_scales_by_one():
    assert Dora.presets["paper"].method["alpha"] == Dora.presets["paper"].method["rank"]  # the code's lora_s
