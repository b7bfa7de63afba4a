"""Prompt methods beside their official code: released layouts load whole, and give the same embeddings to 1e-5."""

import json
import re

import pytest
import torch
from golden.fill import filled, inputs
from golden.openai_clip import encoder
from support import ROOT
from torch import nn

from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.backbones.tokenizers import HashingTokenizer
from petlbench.methods.base import MethodError
from petlbench.methods.clip_adapter import ClipAdapter, ClipAdapterConfig
from petlbench.methods.clip_lora import ClipLora
from petlbench.methods.cocoop import Cocoop, CocoopConfig
from petlbench.methods.coop import Coop, CoopConfig
from petlbench.methods.layers import prompts as layer
from petlbench.methods.maple import Maple, MapleConfig
from petlbench.methods.official import OfficialError, OfficialState, load_official
from petlbench.methods.vl_prompt import VlPrompt, VlPromptConfig
from petlbench.methods.vpt import Vpt, VptConfig

pytestmark = pytest.mark.usefixtures("one_thread")


def far(a, b):
    """Largest difference, relative to the largest value."""
    return float(((a - b).abs().max() / b.abs().max()).detach())


def golden(name):
    return json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text(encoding="utf-8"))


def weights(data, shapes):
    state = filled(shapes, data["seed"], data["scale"])
    return {n: 1 + t if re.search(r"(^|\.)ln_\w+\.weight$", n) else t for n, t in state.items()}


def captions(data):
    """The official class prompts without their placeholders."""
    own = HashingTokenizer(data["sizes"]["vocab_size"], data["sizes"]["context_length"])
    return own([f"{text}." for text in data["captions"]])


def pictures(data):
    side = data["sizes"]["image_resolution"]
    return inputs((len(data["captions"]), 3, side, side), data["seed"])


def imported(method, model, tensors):
    state = OfficialState(tensors)
    load_official(model, method.import_official(model, state), state, list(method.trainable(model)))
    return model.eval()


def test_coop_gives_the_embeddings_of_its_code():
    data = golden("coop")
    case = data["cases"]["coop"]
    backbone = encoder(data["sizes"])
    backbone.clip.load_state_dict(weights(data, case["clip"]), strict=True)
    method = Coop(CoopConfig(tokens=case["tokens"]))
    fixed = {"token_prefix": torch.zeros(3, 1, 64), "token_suffix": torch.zeros(3, 19, 64)}
    model = imported(method, method.build(backbone), weights(data, case["learner"]) | fixed)
    with torch.no_grad():
        text, image = method.encode_text(model, captions(data)), method.encode_image(model, pictures(data))
    assert far(text, torch.tensor(case["text"])) < 1e-5
    assert far(image, torch.tensor(case["image"])) < 1e-5
    unit = nn.functional.normalize
    logits = method.logit_scale(model).exp() * unit(image, dim=-1) @ unit(text, dim=-1).T
    assert far(logits, torch.tensor(case["logits"])) < 1e-5
    # What the shift of the words is worth: without it the result is another one.
    kept = Coop(CoopConfig(tokens=case["tokens"], positions="kept"))
    with torch.no_grad():
        assert far(kept.encode_text(model, captions(data)), text) > 0.01


@pytest.mark.parametrize("name", ["maple", "ivlp"])
def test_multi_modal_prompts_give_the_embeddings_of_their_code(name):
    data = golden("maple")
    case = data["cases"][name]
    backbone = encoder(data["sizes"])
    words = weights(data, {"token_embedding.weight": case["words"]})
    backbone.clip.load_state_dict(words, strict=False)
    if name == "maple":
        method = Maple(MapleConfig(tokens=case["tokens"], depth=case["depth"], words=""))
    else:
        method = VlPrompt(
            VlPromptConfig(
                image_tokens=case["vision_ctx"],
                image_depth=case["vision_depth"],
                text_tokens=case["language_ctx"],
                text_depth=case["language_depth"],
                input_norm=True,
            )
        )
    fixed = {
        "prompt_learner.token_prefix": torch.zeros(3, 1, 64),
        "prompt_learner.token_suffix": torch.zeros(3, 21, 64),
    }
    model = imported(method, method.build(backbone), weights(data, case["shapes"]) | fixed)
    with torch.no_grad():
        assert far(method.encode_text(model, captions(data)), torch.tensor(case["text"])) < 1e-5
        assert far(method.encode_image(model, pictures(data)), torch.tensor(case["image"])) < 1e-5


@pytest.mark.parametrize("name", ["shallow", "deep"])
def test_vpt_gives_the_class_token_of_its_code(name):
    data = golden("vpt")
    case, sizes = data["cases"][name], data["sizes"]
    tensors = filled(case["shapes"], data["seed"], data["scale"])
    tensors = {n: 1 + t if "norm.weight" in n else t for n, t in tensors.items()}
    backbone = random_clip(blocks=sizes["depth"], width=sizes["width"], resolution=sizes["side"], patch=sizes["patch"])
    plain_vit_into(backbone.clip.visual, tensors, sizes["depth"])
    method = Vpt(VptConfig(tokens=sizes["tokens"], depth=1 if name == "shallow" else "all"))
    torch.manual_seed(0)
    model = method.build(backbone)
    start = model.image_prompts.detach().abs().max()
    assert float(start) == pytest.approx(case["largest_start"], rel=0.05)
    # Its checkpoints hold the whole vision transformer, which is no CLIP: everything but the prompts is set aside.
    model = imported(method, model, {f"transformer.{n}": t for n, t in tensors.items()})
    with torch.no_grad():
        pooled = layer.pooled_image(
            backbone.image, inputs((3, 3, sizes["side"], sizes["side"]), data["seed"]), model.image_prompts
        )
    assert far(pooled, torch.tensor(case["class_token"])) < 1e-5


def plain_vit_into(visual, tensors, depth):
    """A plain vision transformer as a CLIP image tower: no ln_pre, patch bias within the positions, its norms' epsilon."""
    state = {
        "class_embedding": tensors["embeddings.cls_token"][0, 0],
        "conv1.weight": tensors["embeddings.patch_embeddings.weight"],
        "positional_embedding": tensors["embeddings.position_embeddings"][0].clone(),
    }
    state["positional_embedding"][1:] += tensors["embeddings.patch_embeddings.bias"]
    pairs = {"attn.out": "attn.out_proj", "ffn.fc1": "mlp.c_fc", "ffn.fc2": "mlp.c_proj"}
    pairs |= {"attention_norm": "ln_1", "ffn_norm": "ln_2"}
    for part in ("weight", "bias"):
        state[f"ln_post.{part}"] = tensors[f"encoder.encoder_norm.{part}"]
        for index in range(depth):
            theirs, ours = f"encoder.layer.{index}.", f"transformer.resblocks.{index}."
            packed = [tensors[f"{theirs}attn.{role}.{part}"] for role in ("query", "key", "value")]
            state[f"{ours}attn.in_proj_{part}"] = torch.cat(packed)
            state |= {f"{ours}{b}.{part}": tensors[f"{theirs}{a}.{part}"] for a, b in pairs.items()}
    visual.ln_pre = nn.Identity()
    missing, unexpected = visual.load_state_dict(state, strict=False)
    assert missing == ["proj"] and not unexpected
    for module in visual.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def test_vpt_reads_its_prompt_files_too():
    method, backbone = Vpt(VptConfig(tokens=5)), random_clip()
    tensors = {"shallow_prompt": torch.randn(1, 5, 32), "deep_prompt": torch.randn(1, 5, 32)}
    model = imported(method, method.build(backbone), tensors)
    assert torch.equal(model.image_prompts, torch.cat([tensors["shallow_prompt"], tensors["deep_prompt"]]))
    with pytest.raises(OfficialError, match=r"image_prompts is \(1, 5, 32\), expected \(2, 5, 32\)"):
        imported(method, method.build(random_clip()), {"shallow_prompt": torch.randn(1, 5, 32)})


def test_an_official_checkpoint_of_another_activation_or_depth_is_refused():
    data = golden("maple")
    tensors = weights(data, data["cases"]["maple"]["shapes"])
    method = Maple(MapleConfig(tokens=2, depth=2, words=""))
    with pytest.raises(MethodError, match="quick_gelu"):
        imported(method, method.build(encoder(data["sizes"], activation="gelu")), tensors)
    with pytest.raises(MethodError, match="holds a CLIP"):
        imported(method, method.build(random_two_tower()), tensors)
    deeper = Maple(MapleConfig(tokens=2, depth=3, words=""))
    with pytest.raises(OfficialError, match=r"no tensor prompt_learner\.compound_prompts_text\.1"):
        imported(deeper, deeper.build(encoder(data["sizes"])), tensors)


@pytest.mark.parametrize(
    "method",
    [
        Coop(CoopConfig(tokens=2, words="")),
        Cocoop(CocoopConfig(tokens=2, words="")),
        ClipLora(),
        ClipAdapter(ClipAdapterConfig(towers="image")),
    ],
    ids=lambda method: type(method).__name__,
)
def test_weights_trained_on_openai_clip_are_refused_on_another_activation(method):
    model = method.build(random_clip(quick_gelu=False))
    with pytest.raises(MethodError, match=r"which uses quick_gelu; .* computes gelu"):
        method.import_official(model, OfficialState({}, "released.pt"))
