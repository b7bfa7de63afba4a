"""UniAdapter: its authors' layers in place, and what the two towers share in the port."""

import copy
import json

import pytest
import torch
from built_models import assembled as built
from golden.fill import filled, inputs
from golden.vit_blocks import put_blocks, relative
from support import ROOT
from torch import nn

from petlbench.harness import audit
from petlbench.harness.contract_data import fake_batch
from petlbench.methods.backbones.base import BranchState, Hidden
from petlbench.methods.backbones.random_models import random_clip
from petlbench.methods.base import MethodError, count
from petlbench.methods.official import OfficialError, OfficialState, load_official
from petlbench.methods.uniadapter import UniAdapter, UniAdapterConfig

GOLDEN = json.loads((ROOT / "tests" / "golden" / "uniadapter.json").read_text(encoding="utf-8"))
CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("one_thread")


def make(**options):
    return UniAdapter(UniAdapterConfig(**options))


def attached(tower):
    return [block.attached_mlp[0] for block in tower.blocks]


def embed(method, model, batch):
    return audit.embed_for_audit(method, model, batch, CPU)


def load(method, model, tensors):
    state = OfficialState(tensors, "golden.pth")
    load_official(model, method.import_official(model, state), state, set(method.trainable(model)))
    return state


# --- against the authors' code ---


def at_golden():
    size = GOLDEN["sizes"]
    method = make(across="down", bottleneck=size["bottleneck"])
    model = built(method, random_clip(width=size["width"], blocks=size["depth"]))
    tensors = filled(GOLDEN["shapes"], GOLDEN["seed"], scale=0.2)
    put_blocks(model.image, tensors, "visual_encoder.")
    return method, model, tensors


def test_uniadapter_with_a_shared_down_projection_equals_the_authors():
    method, model, tensors = at_golden()
    state = load(method, model, tensors)
    assert state.dropped["adapters.0.multi_up_proj.weight"] == "fusion branch"
    x = inputs(GOLDEN["sizes"]["input"], GOLDEN["seed"])
    image = model.eval().image.run(Hidden(x, prefix=1)).x
    assert relative(image, GOLDEN["image"]) < 1e-5
    # The authors' text encoder is post-norm, which no CLIP tower is; their layer's own output on one input is compared.
    text = attached(model.text)[1](BranchState(torch.zeros_like(x), x, torch.full_like(x, torch.nan), Hidden(x)))
    assert relative(text, GOLDEN["text_layer_1"]) < 1e-5
    (image.square().mean() + text.square().mean()).backward()
    ours = {
        **{f"{i}.visual_up_proj": a.up for i, a in enumerate(attached(model.image))},
        **{f"{i}.down_proj": a.down for i, a in enumerate(attached(model.image))},
        **{f"{i}.adapter_layer_norm_before": a.norm for i, a in enumerate(attached(model.image))},
        "1.up_proj": attached(model.text)[1].up,
    }
    assert {f"{name}.{kind}" for name in ours for kind in ("weight", "bias")} == GOLDEN["gradient_norms"].keys()
    for name, layer in ours.items():
        for kind in ("weight", "bias"):
            expected = GOLDEN["gradient_norms"][f"{name}.{kind}"]
            assert getattr(layer, kind).grad.norm().item() == pytest.approx(expected, rel=1e-4)


def test_uniadapter_starts_as_the_authors_do():
    expected = GOLDEN["start_image_up_std"]
    model = built(make(bottleneck=64), random_clip(width=256, blocks=1))
    (image,), (text,) = attached(model.image), attached(model.text)
    assert image.up.weight.std().item() == pytest.approx(expected, rel=0.05)
    assert not text.up.weight.any() and not image.up.bias.any() and not text.up.bias.any()
    assert image.down.weight.abs().max().item() == pytest.approx(256**-0.5, rel=0.01)


def test_a_uniadapter_import_takes_the_whole_blip_file():
    method, model, tensors = at_golden()
    whole = {
        "text_encoder.encoder.layer.0.adapter.down_proj.weight": torch.ones(1),
        "text_encoder.embeddings.word_embeddings.weight": torch.ones(1),
        "adapters_m.0.up_proj.bias": torch.ones(1),
        "visual_encoder_m.blocks.0.norm1.bias": torch.ones(1),
        "vision_proj.weight": torch.ones(1),
        "itm_head.bias": torch.ones(1),
        "temp": torch.ones(()),
        "image_queue": torch.ones(1),
    }
    assert whole.keys() <= load(method, model, tensors | whole).dropped.keys()
    with pytest.raises(OfficialError, match=r"left over in the file: adapters\.2\.down_proj\.bias"):
        load(method, model, tensors | {"adapters.2.down_proj.bias": torch.ones(8)})
    other = make()
    with pytest.raises(MethodError, match="across=down"):
        other.import_official(built(other, random_clip()), OfficialState(filled(GOLDEN["shapes"], 0)))


# --- what the towers share ---


def test_the_core_starts_as_the_identity_and_is_one_for_both_towers():
    method = make(across="core", bottleneck=4)
    model, batch = built(method, random_clip()), fake_batch(random_clip())
    for image, text in zip(attached(model.image), attached(model.text), strict=True):
        assert image.down.core is text.down.core
        assert image.down.own is not text.down.own
    plain = make(bottleneck=4)
    without = built(plain, random_clip())
    for tower, other in ((model.image, without.image), (model.text, without.text)):
        for adapter, copy_of in zip(attached(tower), attached(other), strict=True):
            copy_of.down.load_state_dict(adapter.down.own.state_dict())
            copy_of.up.load_state_dict(adapter.up.state_dict())
    assert torch.allclose(embed(method, model, batch), embed(plain, without, batch), atol=1e-6)
    nn.init.constant_(attached(model.image)[0].down.core.weight, 0.3)
    assert not torch.allclose(embed(method, model, batch), embed(plain, without, batch), atol=1e-6)


def test_uniadapter_leaves_the_text_side_at_the_start_and_both_with_zero():
    for init, moved in (("original", [True, False]), ("zero", [False, False])):
        method, backbone = make(init=init), random_clip()
        batch = fake_batch(backbone)
        before = audit.embed_untouched(backbone, batch, CPU)
        model = built(method, backbone)
        parts = (embed(method, model, batch) - before).abs().chunk(2)
        assert [bool(part.max() > 1e-6) for part in parts] == moved


def test_uniadapter_refuses_towers_that_cannot_share():
    wide, deep = random_clip(width=64, text_width=32), random_clip(text_blocks=3)
    assert "64 and 32 wide" in str(make(across="down").refuse(wide))
    assert make(across="core").refuse(wide) is None
    assert make().refuse(deep) is None
    for across in ("core", "down"):
        method = make(across=across)
        assert "has 2 and 3" in str(method.refuse(deep))
        with pytest.raises(MethodError, match=r"cannot sit on random-clip.*across=none"):
            method.build(copy.deepcopy(deep))
        assert make(across=across, sharing="all").refuse(deep) is None


@pytest.mark.parametrize("across", ["none", "core", "down"])
@pytest.mark.parametrize("sharing", ["all", "layer"])
@pytest.mark.parametrize("input_norm", [True, False])
def test_what_is_shared_is_counted_once(across, sharing, input_norm):
    method, backbone = make(across=across, sharing=sharing, input_norm=input_norm, bottleneck=4), random_clip()
    expected = method.expected_trainable(backbone)
    own = 32 * 4 + 4 + (64 if input_norm else 0)
    up = 4 * 32 + 32
    per_depth = {"none": 2 * own + 2 * up, "core": 2 * own + 2 * up + 16, "down": own + 2 * up}[across]
    model = built(method, backbone)
    assert count(model, method.trainable(model)) == expected == per_depth * (1 if sharing == "all" else 2)
    assert audit.check_gradients(method, model, set(method.trainable(model)), fake_batch(backbone)) == "ok"
