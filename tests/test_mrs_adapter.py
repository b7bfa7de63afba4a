"""MRS-Adapter against its authors' code: forward, second view, loss, gradients, released layout; and its sharing."""

import copy
import json
import math

import pytest
import torch
from built_models import assembled as built
from golden import openai_clip
from golden.fill import filled, inputs
from support import ROOT
from torch import nn

from petlbench.harness import audit
from petlbench.harness.contract_data import fake_batch
from petlbench.methods import losses
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.backbones.tiny_clip import load_tiny_clip
from petlbench.methods.base import Batch, MethodError, count
from petlbench.methods.mrs_adapter import MrsAdapter, MrsAdapterConfig
from petlbench.methods.official import OfficialError, OfficialState, load_official
from petlbench.methods.recipe import LossConfig, Recipe

GOLDEN = json.loads((ROOT / "tests" / "golden" / "mrs_adapter.json").read_text(encoding="utf-8"))
SMALL = MrsAdapterConfig(bottleneck=4, shared=8)
PER_LAYER = MrsAdapterConfig(bottleneck=4, shared=8, sharing="layer")
ADAPTER_ONLY = {n.removeprefix("Uniadapt."): s for n, s in GOLDEN["shapes"].items() if n.startswith("Uniadapt.")}

pytestmark = pytest.mark.usefixtures("one_thread")


def adapters(tower):
    return [tower.blocks[i].attached_mlp[0] for i in range(tower.depth)]


def load(method, model, tensors):
    state = OfficialState(tensors, "golden.pth")
    load_official(model, method.import_official(model, state), state, set(method.trainable(model)))


def ids_only_batch(rows):
    return Batch(None, None, torch.arange(rows), torch.arange(rows))


@pytest.fixture(scope="module")
def official():
    """Our model with the weights that the authors' code ran with, and the inputs."""
    method, backbone = MrsAdapter(), openai_clip.encoder(GOLDEN["sizes"])
    model = built(method, backbone)
    load(method, model, filled(GOLDEN["shapes"], GOLDEN["seed"]))
    side = GOLDEN["sizes"]["image_resolution"]
    images = inputs((GOLDEN["rows"], 3, side, side), GOLDEN["seed"])
    return method, model.eval(), images, openai_clip.tokens(torch.tensor(GOLDEN["ids"]))


@pytest.fixture(scope="module")
def released():
    """A whole released state dict, and a model that never loads it: what is refused leaves a model untouched."""
    return MrsAdapter(), built(MrsAdapter(), openai_clip.encoder(GOLDEN["sizes"])), filled(GOLDEN["shapes"], 2)


def golden(name):
    return torch.tensor(GOLDEN[name])


def assert_same(ours, theirs):
    assert ((ours - theirs).abs().max() / theirs.abs().max()).item() < 1e-5


def second_view(tower, project, tokens_or_images, seed):
    """The authors' second view with a fixed mask in place of dropout: on the embedded tokens, CLS included."""
    hidden = tower.embed(tokens_or_images)
    kept = inputs(hidden.x.shape, seed) > -0.84
    return project(tower.pool(tower.run(hidden.with_x(hidden.x * kept / 0.8))))


# --- against the authors' code ---


def test_embeddings_equal_the_authors(official):
    method, model, images, tokens = official
    with torch.no_grad():
        assert_same(method.encode_image(model, images), golden("image"))
        assert_same(method.encode_text(model, tokens), golden("text"))
        assert_same(method.encode_text(model, tokens.trimmed()), golden("text"))


def test_the_adapter_matters_in_the_golden_case(official):
    method, model, images, tokens = official
    without = copy.deepcopy(model)
    with torch.no_grad():
        for tower in (without.image, without.text):
            for adapter in adapters(tower):
                adapter.up.weight.zero_(), adapter.up.bias.zero_()
        for ours, name in (
            (method.encode_image(without, images), "image"),
            (method.encode_text(without, tokens), "text"),
        ):
            assert ((ours - golden(name)).abs().max() / golden(name).abs().max()).item() > 1e-2


def test_a_whole_step_equals_the_authors(official):
    method, model, images, tokens = official
    model.zero_grad()
    image, text = method.encode_image(model, images), method.encode_text(model, tokens)
    image_view = second_view(model.image, model.project_image, images, GOLDEN["seed"] + 1)
    text_view = second_view(model.text, model.project_text, tokens, GOLDEN["seed"] + 2)
    assert_same(image_view.detach(), golden("image_view"))
    assert_same(text_view.detach(), golden("text_view"))
    terms = losses.terms(
        image, text, torch.tensor(1.0), ids_only_batch(len(image)), LossConfig(name="hmmc"), (image_view, text_view)
    )
    total = sum(terms.values())
    total.backward()
    assert total.item() == pytest.approx(GOLDEN["hmmc"], rel=1e-6)
    vision, language = adapters(model.image)[0], adapters(model.text)[0]
    ours = {
        "visual_down_proj": vision.down,
        "down_proj": language.down,
        "visual_up_proj": vision.up,
        "up_proj": language.up,
        "share_up_proj": vision.shared,
    }
    expected = GOLDEN["gradient_norms"]
    assert len(expected) == 2 * len(ours)
    for name, layer in ours.items():
        for part in ("weight", "bias"):
            found = getattr(layer, part).grad.norm().item()
            assert found == pytest.approx(expected[f"Uniadapt.{name}.{part}"], rel=1e-4)


@pytest.mark.parametrize("case", GOLDEN["losses"], ids=lambda c: f"seed {c['seed']}")
def test_hmmc_equals_the_authors_loss(case):
    features = [inputs((case["rows"], case["width"]), case["seed"] * 10 + k) for k in range(4)]
    if case["equal"]:
        for matrix in features:
            matrix[case["equal"][1]] = matrix[case["equal"][0]]
    image, text, image_view, text_view = features

    def terms(config):
        batch = ids_only_batch(case["rows"])
        return losses.terms(image, text, torch.tensor(1.0), batch, config, (image_view, text_view))

    found = [value.item() for value in terms(LossConfig(name="hmmc")).values()]
    assert found == pytest.approx(case["terms"], rel=1e-6, abs=1e-6)
    assert sum(found) == pytest.approx(case["hmmc"], rel=1e-6, abs=1e-6)
    every = sum(terms(LossConfig(name="hinge")).values())
    assert every.item() == pytest.approx(case["hinge"], rel=1e-6, abs=1e-6)


def test_defaults_are_the_authors():
    assert MrsAdapterConfig().dropout == GOLDEN["adapter"]["dropout"]
    backbone = openai_clip.encoder(GOLDEN["sizes"])
    method = MrsAdapter()
    assert method.expected_trainable(backbone) == GOLDEN["adapter"]["trainable"] == 161_088
    recipe = Recipe(**MrsAdapter.presets["paper"].train)
    assert (recipe.loss.name, recipe.loss.margin, recipe.loss.view, recipe.loss.view_dropout) == (
        "hmmc",
        0.2,
        "element",
        0.2,
    )
    assert (recipe.lr, recipe.batch_size, recipe.epochs) == (2e-4, 16, 30)


# --- the released layout ---


@pytest.mark.parametrize("prefix", ["", "Uniadapt.", "PE_RSITR.Uniadapt."])
def test_the_adapter_alone_can_be_imported(prefix):
    method, backbone = MrsAdapter(), openai_clip.encoder(GOLDEN["sizes"])
    before = backbone.clip.visual.proj.clone()
    model = built(method, backbone)
    tensors = filled(ADAPTER_ONLY, 1)
    load(method, model, {f"{prefix}{name}": tensor for name, tensor in tensors.items()})
    adapter = model.text.blocks[1].attached_mlp[0]
    assert torch.equal(adapter.down.weight, tensors["down_proj.weight"])
    assert torch.equal(adapter.shared.bias, tensors["share_up_proj.bias"])
    assert torch.equal(backbone.clip.visual.proj, before)


def test_the_authors_wrapper_and_stray_buffers_are_understood():
    method, backbone = MrsAdapter(), openai_clip.encoder(GOLDEN["sizes"])
    model = built(method, backbone)
    tensors = {f"PE_RSITR.{name}": t for name, t in filled(GOLDEN["shapes"], 2).items()}
    load(method, model, tensors | {"PE_RSITR.model.context_length": torch.tensor(12)})
    assert torch.equal(backbone.clip.text_projection, tensors["PE_RSITR.model.text_projection"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("Uniadapt.up_proj.bias"), "no tensor Uniadapt.up_proj.bias"),
        (
            lambda t: t.pop("model.ln_final.bias"),
            r"holds part of CLIP.*1 of \d+ tensors are missing.*clip.ln_final.bias",
        ),
        (lambda t: t.update(extra=torch.zeros(1)), "1 left over in the file: extra"),
        (lambda t: t.update({"model.extra": torch.zeros(1)}), "1 unknown to the model: clip.extra"),
        (lambda t: t.update({"Uniadapt.up_proj.bias": torch.zeros(3)}), r"is \(3,\), expected \(448,\)"),
    ],
)
def test_an_incomplete_file_is_refused(released, change, message):
    method, model, tensors = released
    tensors = dict(tensors)
    change(tensors)
    before = audit.frozen_hash(model, set())
    with pytest.raises(OfficialError, match=message):
        load(method, model, tensors)
    assert audit.frozen_hash(model, set()) == before


@pytest.mark.parametrize("config", [MrsAdapterConfig(sharing="layer"), MrsAdapterConfig(shared=0)])
def test_another_form_cannot_read_the_released_layout(config):
    method = MrsAdapter(config)
    model = built(method, openai_clip.encoder(GOLDEN["sizes"]))
    with pytest.raises(MethodError, match=r"golden.pth holds one adapter.*sharing=all and shared=64"):
        load(method, model, filled(ADAPTER_ONLY, 1))


def test_the_wrong_activation_is_refused():
    method = MrsAdapter()
    model = built(method, openai_clip.encoder(GOLDEN["sizes"], activation="gelu"))
    with pytest.raises(MethodError, match="uses quick_gelu; golden computes gelu"):
        load(method, model, filled(ADAPTER_ONLY, 1))


# --- size, sharing, start ---


def test_per_layer_counts_follow_towers_of_different_depth_and_width():
    backbone = random_clip(blocks=3, text_blocks=2, width=48, text_width=32)
    for config, expected in (
        (SMALL, 4 * (48 + 32) + 8 + 5 * (48 + 32 - 8)),
        (PER_LAYER, 3 * (4 * 48 + 4 + 5 * 40) + 2 * (4 * 32 + 4 + 5 * 24) + 3 * 5 * 8),
    ):
        method, model = MrsAdapter(config), copy.deepcopy(backbone)
        assert method.expected_trainable(model) == expected
        assert count(built(method, model), method.trainable(model)) == expected


@pytest.mark.parametrize(
    ("vision", "text", "shared", "per_layer"),
    [
        ((768, 12), (512, 12), 161_088, 1_933_056),  # ViT-B/32 and B/16
        # ViT-L/14: the parts of the two modalities, and one slice or one for each of the 24 blocks
        ((1024, 24), (768, 12), 65_600 + 62_400 + 49_216 + 45_760 + 4_160, 24 * 128_000 + 12 * 94_976 + 24 * 4_160),
    ],
)
def test_it_scales_with_widths_and_depths(vision, text, shared, per_layer):
    sizes = GOLDEN["sizes"] | {"vision_width": vision[0], "vision_layers": vision[1], "transformer_width": text[0]}
    sizes |= {"transformer_layers": text[1], "transformer_heads": text[0] // 64}
    for sharing, expected in (("all", shared), ("layer", per_layer)):
        with torch.device("meta"):
            backbone = openai_clip.encoder(sizes)
        method = MrsAdapter(MrsAdapterConfig(sharing=sharing))
        assert method.expected_trainable(backbone) == expected
        model = method.build(backbone.to("meta"))
        assert count(model, method.trainable(model)) == expected


@pytest.mark.parametrize("load", [load_tiny_clip, random_two_tower])
def test_it_sits_on_the_small_backbones(load):
    backbone = load()
    method = MrsAdapter()
    wide, narrow = backbone.image.width, backbone.text.width
    slice_width = min(64, narrow)
    assert method.expected_trainable(backbone) == 64 * (wide + narrow) + 128 + 65 * (wide + narrow - slice_width)
    batch = fake_batch(backbone)
    before = audit.embed_untouched(backbone, batch, torch.device("cpu"))
    model = built(method, backbone)
    after = audit.embed_for_audit(method, model, batch, torch.device("cpu"))
    assert audit.check_identity(method, before, after) == "ok"


@pytest.mark.parametrize("make", [random_clip, random_two_tower])
def test_one_adapter_per_modality_serves_all_blocks_and_the_slice_serves_both(make):
    model = built(MrsAdapter(SMALL), make())
    vision, language = adapters(model.image), adapters(model.text)
    assert all(a is vision[0] for a in vision)
    assert all(a is language[0] for a in language)
    assert vision[0].shared is language[0].shared
    assert vision[0].down is not language[0].down


def test_per_layer_slices_are_shared_at_the_same_depth_only():
    model = built(MrsAdapter(PER_LAYER), random_clip(blocks=3, text_blocks=2))
    vision, language = adapters(model.image), adapters(model.text)
    assert [vision[i].shared is language[i].shared for i in range(2)] == [True, True]
    assert len({id(a.shared) for a in vision}) == 3


def test_the_shared_slice_is_the_last_channels():
    model = built(MrsAdapter(SMALL), random_clip())
    batch = fake_batch(model)
    seen = []
    adapter = adapters(model.image)[-1]
    nn.init.constant_(adapter.shared.bias, 0.5)
    adapter.register_forward_hook(lambda _m, args, out: seen.append(out - args[0].out))
    model.eval().encode_image(batch.images)
    assert torch.allclose(seen[-1][..., -8:], torch.tensor(0.5), atol=1e-6)
    assert not seen[-1][..., :-8].any()


@pytest.mark.parametrize(
    "shared",
    [0, 32, 500],
    ids=["nothing shared", "the whole text tower", "more than there is"],
)
@pytest.mark.parametrize("sharing", ["all", "layer"])
def test_extreme_slices_train(shared, sharing):
    method = MrsAdapter(MrsAdapterConfig(bottleneck=4, shared=shared, sharing=sharing))
    backbone = random_clip(width=48, text_width=32)
    expected = method.expected_trainable(backbone)
    model = built(method, backbone)
    names = set(method.trainable(model))
    assert count(model, names) == expected
    assert audit.check_gradients(method, model, names, fake_batch(model)) == "ok"


def test_the_start_is_uniform_below_and_zero_above():
    adapter = adapters(built(MrsAdapter(), random_clip(width=96)).image)[0]
    bound = 1 / math.sqrt(96)
    assert bound * 0.9 < adapter.down.weight.abs().max() <= bound
    for tensor in (adapter.down.bias, adapter.up.weight, adapter.up.bias, adapter.shared.weight, adapter.shared.bias):
        assert not tensor.any()


def test_dropout_acts_on_the_bottleneck_while_training_only():
    method = MrsAdapter(MrsAdapterConfig(bottleneck=64, shared=8, dropout=0.5))
    model = built(method, random_clip())
    batch = fake_batch(model)
    for adapter in (adapters(model.image)[0], adapters(model.text)[0]):
        nn.init.normal_(adapter.up.weight)
    model.train()
    first, again = (method.encode_image(model, batch.images) for _ in range(2))
    assert not torch.allclose(first, again)
    model.eval()
    first, again = (method.encode_image(model, batch.images) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("view", ["element", "token"])
def test_hmmc_runs_both_towers_twice_per_step_and_evaluation_once(view):
    method = MrsAdapter(SMALL, LossConfig(name="hmmc", view=view))
    model = built(method, random_clip())
    batch = fake_batch(model)
    calls = []
    for tower in (model.image, model.text):
        tower.blocks[0].attached_mlp[0].register_forward_hook(lambda *_: calls.append(1))
    terms = method.loss(model.eval(), batch)
    assert list(terms) == ["hinge", "hinge_image", "hinge_text"]
    assert len(calls) == 2 * 2 * model.image.depth
    calls.clear()
    method.embed(model, batch)
    assert len(calls) == 2 * model.image.depth
