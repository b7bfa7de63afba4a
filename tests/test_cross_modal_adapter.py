"""Cross-Modal Adapter against its authors' code, in their form; and what is shared in either form."""

import copy
import json

import pytest
import torch
from built_models import assembled as built
from golden import openai_clip
from golden.fill import filled, inputs
from support import ROOT

from petlbench.harness import audit
from petlbench.harness.contract_data import fake_batch
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.base import Batch, MethodError, count
from petlbench.methods.cross_modal_adapter import CrossModalAdapter, CrossModalAdapterConfig
from petlbench.methods.official import OfficialError, OfficialState, load_official

GOLDEN = json.loads((ROOT / "tests" / "golden" / "cross_modal_adapter.json").read_text(encoding="utf-8"))
FORMS = GOLDEN["forms"]
STACKS = {"visual_adapter_down": "down", "visual_adapter_up_unique": "up", "vt_adapter_up_share": "shared"}

pytestmark = pytest.mark.usefixtures("one_thread")


def method_for(form, **changes):
    options = {"bottleneck": form["bottleneck"], "shared": form["shared"], "sharing": "layer"} | changes
    return CrossModalAdapter(CrossModalAdapterConfig(**options))


def attached(tower):
    """Adapters in the order of the official stacks: attention and MLP of block 0, of block 1, ..."""
    return [getattr(block, f"attached_{kind}")[0] for block in tower.blocks for kind in ("attention", "mlp")]


def weights(form, seed=GOLDEN["seed"]):
    return filled(form["shapes"], seed, scale=0.2) | {"clip.logit_scale": torch.tensor(GOLDEN["log_scale"])}


def load(method, model, tensors):
    state = OfficialState(tensors, "golden.bin")
    load_official(model, method.import_official(model, state), state, set(method.trainable(model)))


def golden_batch():
    side, rows = GOLDEN["sizes"]["image_resolution"], GOLDEN["rows"]
    images = inputs((rows, 3, side, side), GOLDEN["seed"])
    return Batch(images, openai_clip.tokens(torch.tensor(GOLDEN["ids"])), torch.arange(rows), torch.arange(rows))


# --- against the authors' code ---


@pytest.mark.parametrize("name", FORMS)
def test_embeddings_loss_and_gradients_equal_the_authors(name):
    form = FORMS[name]
    method, backbone = method_for(form), openai_clip.encoder(GOLDEN["sizes"])
    assert method.expected_trainable(backbone) == form["trainable"]
    model = built(method, backbone)
    load(method, model, weights(form))
    batch = golden_batch()
    for ours, key in zip(method.embed(model.eval(), batch), ("image", "text"), strict=True):
        theirs = torch.tensor(form[key])
        assert ((ours - theirs).abs().max() / theirs.abs().max()).item() < 1e-5
    loss = method.loss(model, batch)["infonce"]
    assert loss.item() == pytest.approx(form["infonce"], rel=1e-6)
    loss.backward()
    for stack, layer in STACKS.items():
        for part in ("weight", "bias"):
            if f"{stack}_{part}" in form["gradient_norms"]:
                rows = [getattr(getattr(a, layer), part).grad for a in attached(model.image)]
                expected = form["gradient_norms"][f"{stack}_{part}"]
                assert torch.stack(rows).norm().item() == pytest.approx(expected, rel=1e-4)


def test_the_start_is_the_authors():
    form = FORMS["official"]
    model = built(method_for(form), openai_clip.encoder(GOLDEN["sizes"]))
    layers = [layer for a in attached(model.image) + attached(model.text) for layer in (a.down, a.up, a.shared)]
    spread = torch.cat([layer.weight.flatten() for layer in layers]).std().item()
    assert spread == pytest.approx(form["start_std"], rel=0.02)
    assert form["start_biases"] == 0 == sum(layer.bias.abs().sum().item() for layer in layers)


# --- the released layout ---


def test_the_adapter_alone_can_be_imported():
    form = FORMS["official"]
    method, backbone = method_for(form), openai_clip.encoder(GOLDEN["sizes"])
    before = backbone.clip.visual.proj.clone()
    model = built(method, backbone)
    tensors = {n.removeprefix("clip."): t for n, t in weights(form).items() if "adapter" in n}
    load(method, model, tensors)
    for index, adapter in enumerate(attached(model.text)):
        assert torch.equal(adapter.down.weight, tensors["text_adapter_down_weight"][index])
        assert torch.equal(adapter.shared.bias, tensors["vt_adapter_up_share_bias"][index])
    assert torch.equal(backbone.clip.visual.proj, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("clip.text_adapter_down_bias"), "no tensor clip.text_adapter_down_bias"),
        (lambda t: t.pop("clip.ln_final.bias"), r"holds part of CLIP under 'clip.'.*clip.ln_final.bias"),
        (lambda t: t.update({"cross.x": torch.zeros(1)}), "1 left over in the file: cross.x"),
        (
            lambda t: t.update({"clip.text_adapter_down_bias": torch.zeros(24, 8)}),
            "text_adapter_down_bias has 24 rows for a tower of 2 blocks; expected 4",
        ),
        (lambda t: t.update({"clip.text_adapter_down_bias": torch.zeros(4, 9)}), r"is \(9,\), expected \(8,\)"),
    ],
)
def test_an_incomplete_file_is_refused(change, message):
    method = method_for(FORMS["official"])
    model = built(method, openai_clip.encoder(GOLDEN["sizes"]))
    tensors = weights(FORMS["official"])
    change(tensors)
    with pytest.raises(OfficialError, match=message):
        load(method, model, tensors)


@pytest.mark.parametrize("changes", [{"sharing": "all"}, {"branches": "mlp"}, {"activation": "relu"}])
def test_another_form_cannot_read_the_released_layout(changes):
    method = method_for(FORMS["official"], **changes)
    model = built(method, openai_clip.encoder(GOLDEN["sizes"]))
    with pytest.raises(MethodError, match=r"golden.bin holds an adapter per block and branch.*preset official"):
        load(method, model, weights(FORMS["official"]))


def test_the_wrong_activation_of_the_backbone_is_refused():
    method = method_for(FORMS["official"])
    model = built(method, openai_clip.encoder(GOLDEN["sizes"], activation="gelu"))
    with pytest.raises(MethodError, match="uses quick_gelu; golden computes gelu"):
        load(method, model, weights(FORMS["official"]))


# --- size and sharing ---


@pytest.mark.parametrize("make", [random_clip, random_two_tower])
def test_the_default_form_is_one_adapter_per_modality(make):
    model = built(CrossModalAdapter(), make())
    vision, language = attached(model.image), attached(model.text)
    assert len({id(a) for a in vision}) == len({id(a) for a in language}) == 1
    assert vision[0].shared is language[0].shared
    assert vision[0].down is not language[0].down


def test_per_layer_slices_are_shared_at_the_same_depth_and_branch_only():
    method = method_for({"bottleneck": 4, "shared": 8})
    backbone = random_clip(blocks=3, text_blocks=2, width=48, text_width=32)
    expected = 2 * (3 * (4 * 48 + 4 + 5 * 40) + 2 * (4 * 32 + 4 + 5 * 24) + 3 * 5 * 8)
    assert method.expected_trainable(backbone) == expected
    model = built(method, backbone)
    assert count(model, method.trainable(model)) == expected
    vision, language = attached(model.image), attached(model.text)
    assert [v.shared is t.shared for v, t in zip(vision, language, strict=False)] == [True] * 4
    assert len({id(a.shared) for a in vision}) == 6


@pytest.mark.parametrize(("branches", "half"), [("both", 1), ("attention", 2), ("mlp", 2)])
@pytest.mark.parametrize("sharing", ["all", "layer"])
def test_it_can_stay_behind_one_branch(branches, half, sharing):
    form = {"bottleneck": 4, "shared": 8}
    method = method_for(form, branches=branches, sharing=sharing)
    backbone = random_clip()
    expected = method.expected_trainable(backbone)
    both = method_for(form, sharing=sharing).expected_trainable(backbone)
    assert expected == both // (half if sharing == "layer" else 1)
    model = built(method, backbone)
    names = set(method.trainable(model))
    assert count(model, names) == expected
    assert audit.check_gradients(method, model, names, fake_batch(model)) == "ok"


def test_it_reads_what_the_branch_adds():
    model = built(CrossModalAdapter(CrossModalAdapterConfig(bottleneck=4, shared=8)), random_clip())
    adapter = attached(model.image)[0]
    seen = []
    adapter.register_forward_hook(lambda _m, args, out: seen.append((args[0], out)))
    with torch.no_grad():
        model.encode_image(fake_batch(model).images)
        state, out = seen[-1]
        down = adapter.down(state.out)
        inner = down * torch.sigmoid(1.702 * down)
        expected = state.out + torch.cat([adapter.up(inner), adapter.shared(inner)], -1)
    assert torch.allclose(out, expected, atol=1e-6)


def test_the_start_is_near_the_backbone_but_not_equal():
    method, backbone = CrossModalAdapter(), random_clip()
    batch = fake_batch(backbone)
    with torch.no_grad():
        before = copy.deepcopy(backbone).encode_image(batch.images)
        after = method.encode_image(built(method, backbone).eval(), batch.images)
    assert not method.identity_start
    assert 0 < (after - before).abs().max() < 0.1 * before.abs().max()
