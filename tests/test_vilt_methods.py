"""Methods on a ViLT: their sizes, starts and losses, LoRA against peft, adapters and prompts against other code."""

import json

import pytest
import torch
import torch.nn.functional as F
from built_models import built, disturb
from golden.fill import filled, inputs
from pydantic import ValidationError
from support import ROOT
from vilt_forms import CLASSES, FORMS, of, scores

from petlbench.harness import audit
from petlbench.harness.contract_data import FALSE_CAPTIONS, fake_batch
from petlbench.methods import registry
from petlbench.methods.backbones.base import Tokens
from petlbench.methods.backbones.random_models import random_clip, random_vilt
from petlbench.methods.backbones.shapes import vilt_shape_only
from petlbench.methods.backbones.vilt import ViltEncoder
from petlbench.methods.backbones.vilt_files import vilt_names
from petlbench.methods.backbones.vilt_tower import build_vilt
from petlbench.methods.base import MethodError, count
from petlbench.methods.layers.vilt_pairs import matching
from petlbench.methods.vilt_adapter import ViltAdapter, ViltAdapterConfig
from petlbench.methods.vilt_full import ViltFull, ViltFullConfig
from petlbench.methods.vilt_lora import ViltLora, ViltLoraConfig
from petlbench.methods.vilt_prompt import ViltPrompt, ViltPromptConfig

GOLDEN = json.loads((ROOT / "tests" / "golden" / "vilt_prompt.json").read_text(encoding="utf-8"))
OPTIONS = ({}, {"itm_weight": 0.5}, {"train_pooler": True})
pytestmark = pytest.mark.usefixtures("one_thread")


# --- sizes ---


WITHOUT_HEAD = [
    (ViltFull, "all", 111_595_777 - 769),
    (ViltFull, "head", 0),
    (ViltFull, "layer_norm", 39_936),
    (ViltFull, "bias", 104_448),
    (ViltLora, "r4_qv", 147_456),
    (ViltLora, "r8_qv", 294_912),
    (ViltLora, "r16_qv", 589_824),
    (ViltLora, "r8_qkvo", 589_824),
    (ViltLora, "r8_all", 1_327_104),
    (ViltAdapter, "r16", 304_320),
    (ViltAdapter, "r64", 1_189_632),
    (ViltAdapter, "adaptformer", 1_189_632),
    (ViltAdapter, "houlsby", 1_789_056),
    (ViltPrompt, "input", 73_728),
    (ViltPrompt, "attention", 73_728),
]


@pytest.fixture(scope="module")
def vilt_b_32():
    return vilt_shape_only()


@pytest.mark.parametrize(("cls", "form", "size"), WITHOUT_HEAD)
def test_trained_scalars_on_vilt_b_32(vilt_b_32, cls, form, size):
    assert of(cls, form).expected_trainable(vilt_b_32) == size + 769 == cls.variants[form].trainable
    pooler = 0 if form == "all" else 590_592 - (768 if form == "bias" else 0)  # its bias is among all biases already
    assert of(cls, form, train_pooler=True).expected_trainable(vilt_b_32) == size + 769 + pooler
    assert of(cls, form, itm_weight=1).expected_trainable(vilt_b_32) == size + 769 + 1_538


@pytest.mark.parametrize(("cls", "form"), FORMS)
def test_the_closed_form_is_what_is_built(cls, form):
    for options in OPTIONS:
        method, backbone = of(cls, form, **options), random_vilt(width=16)
        expected = method.expected_trainable(backbone)
        model = method.build(backbone)
        names = list(method.trainable(model))
        assert len(names) == len(set(names))
        assert count(model, names) == expected
        assert any(name.endswith("rank_output.weight") for name in names)


# --- starts and invariances ---


@pytest.mark.parametrize(("cls", "form"), FORMS)
def test_step_0_is_the_untouched_backbone_where_that_is_promised(cls, form):
    method, backbone = of(cls, form, itm_weight=1.0), random_vilt()
    batch = fake_batch(backbone)
    with torch.no_grad():
        before = backbone.score_pairs(batch.images, batch.tokens)
    difference = (scores(method, built(method, backbone), batch) - before).abs().max()
    assert (difference < 1e-6) == method.identity_start == (cls is not ViltPrompt)


@pytest.mark.parametrize(("cls", "form"), FORMS)
def test_scores_do_not_depend_on_padding_or_on_other_pairs(cls, form):
    method, backbone = of(cls, form), random_vilt()
    batch = fake_batch(backbone)
    model = built(method, backbone)
    disturb(model)
    whole = scores(method, model, batch)
    assert whole.std() > 1e-2
    for row in range(len(batch)):
        alone = method.score_pairs(model, batch.images[row : row + 1], batch.tokens[row : row + 1].trimmed())
        assert torch.allclose(alone, whole[row : row + 1], atol=1e-5)


@pytest.mark.parametrize(("cls", "form"), FORMS)
def test_every_trained_tensor_gets_a_gradient(cls, form):
    for options in OPTIONS:
        method, backbone = of(cls, form, **options), random_vilt()
        model = built(method, backbone)
        disturb(model)
        assert audit.check_gradients(method, model, set(method.trainable(model)), fake_batch(backbone)) == "ok"


@pytest.mark.parametrize(
    "method",
    [
        ViltAdapter(ViltAdapterConfig(placement="houlsby")),
        ViltPrompt(ViltPromptConfig(layers=12)),
        ViltPrompt(ViltPromptConfig(layers=12, type="attention")),
    ],
    ids=["houlsby", "input", "attention"],
)
def test_the_cheap_last_block_is_exact(method, monkeypatch):
    backbone = random_vilt()
    model, batch = built(method, backbone), fake_batch(backbone)
    disturb(model)
    cheap = scores(method, model, batch)
    tokens = {"cheap": [], "whole": []}
    mlp = type(backbone.joint)._mlp

    def counted(kind):
        def call(self, index, normed):
            tokens[kind].append(normed.shape[1])
            return mlp(self, index, normed)

        return call

    monkeypatch.setattr(type(backbone.joint), "_mlp", counted("cheap"))
    scores(method, model, batch)
    monkeypatch.setattr(type(backbone.joint), "_mlp", counted("whole"))
    monkeypatch.setattr(type(backbone.joint), "run_pooled", lambda self, *a, **k: self.run(*a, **k))
    assert torch.allclose(scores(method, model, batch), cheap, atol=1e-6)
    assert tokens["cheap"][-1] == 1 < tokens["whole"][-1]


# --- losses ---


def test_the_ranking_loss_is_a_softmax_over_the_candidates():
    method, backbone = ViltLora(), random_vilt()
    model, batch = built(method, backbone), fake_batch(backbone)
    disturb(model)
    each = 1 + FALSE_CAPTIONS
    images = batch.images.repeat_interleave(each, 0)
    with torch.no_grad():
        found = method.loss(model, batch)
        every = method.score_pairs(model, images, batch.candidates).view(len(batch), each)
    assert list(found) == ["ranking"]
    assert torch.allclose(
        found["ranking"], F.cross_entropy(every, torch.zeros(len(batch), dtype=torch.long)), atol=1e-5
    )


def test_matching_classes_the_own_and_one_false_caption():
    logits = torch.tensor([[[0.0, 2.0], [1.0, -1.0]], [[0.5, 0.5], [0.0, 3.0]]])
    parts = [torch.tensor(2.0), torch.tensor(2.0), torch.tensor(0.0), torch.tensor(-3.0)]  # margins of the right class
    assert torch.allclose(matching(logits), torch.stack([F.softplus(-p) for p in parts]).mean())

    batch = fake_batch(random_vilt())
    values = []
    for weight in (0.5, 1.0):
        method = ViltFull(ViltFullConfig(itm_weight=weight))
        model = built(method, random_vilt())
        with torch.no_grad():
            values.append(method.loss(model, batch))
    assert values[0]["ranking"] == values[1]["ranking"]
    assert 2 * values[0]["matching"] == pytest.approx(float(values[1]["matching"]))


def test_the_matching_head_starts_as_the_checkpoint_has_it_or_at_random():
    method, backbone = ViltLora(ViltLoraConfig(itm_weight=1)), random_vilt()
    before = sum(p.numel() for p in backbone.parameters())
    model, batch = built(method, backbone), fake_batch(backbone)
    assert torch.equal(model.itm_output.weight, backbone.itm_head[0])
    assert torch.equal(model.itm_output.bias, backbone.itm_head[1])
    # rank_output started as the row that says "match", so a match logit is a score
    states = method.prepared(model, batch)
    each = 1 + FALSE_CAPTIONS
    with torch.no_grad():
        pooled = method.pooled(model, {"x": states[0]["x"].repeat_interleave(each, 0)}, states[1])
        found = method.candidate_scores(model, *states)
        assert torch.allclose(model.itm_output(pooled)[:, 1], found.flatten(), atol=1e-6)
    assert method.added_at_inference(sum(p.numel() for p in model.parameters()) - before) == 0

    starts = []
    for seed in (0, 0, 1):
        backbone = random_vilt()
        backbone.itm_head = None
        starts.append(built(method, backbone, seed).itm_output.weight)
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_without_matching_nothing_is_built_for_it():
    for cls in CLASSES:
        model = cls().build(random_vilt())
        assert not [name for name, _ in model.named_modules() if "itm" in name]
    method, backbone = ViltAdapter(ViltAdapterConfig(itm_weight=1)), random_vilt()
    before = sum(p.numel() for p in backbone.parameters())
    added = sum(p.numel() for p in method.build(backbone).parameters()) - before
    assert method.added_at_inference(added) == added - (2 * backbone.width + 2)


# --- adapters, block by block with transformers' layers ---


def reference_pass(backbone, batch, branch):
    """ViLT's blocks by transformers' modules, with ``branch(index, kind, out, stream)`` changing what a branch adds."""
    vilt = backbone.vilt
    x = torch.cat([backbone.embed_text(batch.tokens), backbone.embed_image(batch.images)], 1)
    mask = torch.cat([batch.tokens.mask, torch.ones(len(batch), 1 + backbone.patches, dtype=torch.bool)], 1)
    hidden = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)[:, None, None]
    for index, layer in enumerate(vilt.encoder.layer):
        x = x + branch(index, "attention", layer.attention(layer.layernorm_before(x), hidden)[0], x)
        inner = layer.intermediate(layer.layernorm_after(x))
        x = x + branch(index, "mlp", layer.output.dense(inner), x)
    return backbone.rank_output(vilt.pooler(vilt.layernorm(x)))[:, 0]


@pytest.mark.parametrize(
    ("placement", "kinds", "reads"),
    [("pfeiffer", {"mlp"}, "out"), ("houlsby", {"attention", "mlp"}, "out"), ("adaptformer", {"mlp"}, "stream")],
)
def test_adapters_add_a_bottleneck_of_the_branch_or_of_the_stream(placement, kinds, reads):
    method, backbone = ViltAdapter(ViltAdapterConfig(placement=placement, bottleneck=5, scale=0.7)), random_vilt()
    model, batch = built(method, backbone), fake_batch(backbone)
    disturb(model)

    def branch(index, kind, out, stream):
        if kind not in kinds:
            return out
        adapter = getattr(backbone.vilt.encoder.layer[index], f"attached_{kind}")[0]
        return out + 0.7 * adapter.up(torch.relu(adapter.down(out if reads == "out" else stream)))

    with torch.no_grad():
        assert torch.allclose(reference_pass(backbone, batch, branch), scores(method, model, batch), atol=1e-5)


# --- prompts against their authors' code ---


def official_form(kind):
    case, sizes = GOLDEN["cases"][kind], GOLDEN["sizes"]
    method = ViltPrompt(
        ViltPromptConfig(tokens=GOLDEN["tokens"], layers=GOLDEN["layers"], type=kind, train_pooler=True)
    )
    tiny = random_vilt()
    backbone = ViltEncoder("golden", build_vilt(sizes), tiny.tokenizer, tiny.provenance)
    state = filled(case["shapes"], GOLDEN["seed"], GOLDEN["scale"])
    state = {n: 1 + t if "norm" in n.lower() and "weight" in n else t for n, t in state.items()}
    prompts = {n: state.pop(n) for n in list(state) if n.endswith("_prompt")}
    missing, unexpected = backbone.load_state_dict(vilt_names(state), strict=False)
    assert not unexpected
    assert set(missing) == {"rank_output.weight", "rank_output.bias"}
    model = built(method, backbone)
    start = model.prompts.detach().clone()
    with torch.no_grad():
        model.prompts.copy_(prompts["complete_prompt"])
    return method, model, start, case


@pytest.mark.parametrize("kind", GOLDEN["cases"])
def test_prompted_states_are_those_of_the_authors_code(kind):
    method, model, _, case = official_form(kind)
    ids = torch.tensor(GOLDEN["ids"])
    mask = torch.arange(ids.shape[1]) < torch.tensor(GOLDEN["lengths"])[:, None]
    side = GOLDEN["sizes"]["image_size"]
    images = inputs((len(ids), 3, side, side), GOLDEN["seed"])
    with torch.no_grad():
        states = method.image_states(model, images), method.text_states(model, Tokens(ids, mask))
        pooled = method.pooled(model, *states)
    assert torch.allclose(pooled, torch.tensor(case["pooled"]), atol=1e-5)


@pytest.mark.parametrize("kind", GOLDEN["cases"])
def test_prompts_start_and_train_as_in_the_authors_code(kind):
    method, model, start, case = official_form(kind)
    assert torch.argwhere((start == 1).all(-1)).tolist() == case["ones"]
    assert float(start.sum()) == case["start_sum"]
    ours = {n.removeprefix("backbone.vilt.") for n in method.trainable(model)} - {
        "backbone.rank_output.weight",
        "backbone.rank_output.bias",
    }
    theirs = {n for n in case["trained"] if not n.startswith("missing_")}  # nothing is missing here
    assert {n.replace("prompts", "complete_prompt") for n in ours} == theirs


def test_equal_prompts_have_equal_gradients_until_something_tells_them_apart():
    def gradient(dropout, **options):
        method, backbone = ViltPrompt(ViltPromptConfig(tokens=8, **options)), random_vilt()
        model = built(method, backbone).train(dropout)
        method.loss(model, fake_batch(backbone))["ranking"].backward()
        rows = model.prompts.grad[:, 1:4]
        return (rows - rows[:, :1]).abs().max() / rows.abs().max()

    assert gradient(False) < 1e-4
    assert gradient(True) > 1e-2
    assert gradient(True, type="attention") < 1e-4
    assert gradient(False, init="normal") > 1e-2


def test_prompts_reach_no_further_than_the_blocks():
    method, backbone = ViltPrompt(ViltPromptConfig(layers=6)), random_vilt(blocks=2)
    expected = method.expected_trainable(backbone)
    model = method.build(backbone)
    assert model.prompts.shape == (2, 16, backbone.width)
    assert count(model, method.trainable(model)) == expected


# --- what is refused ---


@pytest.mark.parametrize("cls", CLASSES)
def test_other_backbones_are_refused(cls):
    registry.load(registry.discover()[cls.__module__.rpartition(".")[2]])  # gives the class its name
    clip = random_clip()
    assert "kind vilt; random-clip is open_clip" in str(cls().refuse(clip))
    clip.provenance.kind = "vilt"
    assert "random-clip is a OpenClipEncoder" in str(cls().refuse(clip))
    with pytest.raises(MethodError, match=r"found a OpenClipEncoder.*choose a ViLT backbone such as vilt-b32"):
        cls().build(clip)
    assert cls().refuse(random_vilt()) is None


@pytest.mark.parametrize(
    ("config", "options", "says"),
    [
        (ViltPromptConfig, {"type": "attention", "tokens": 5}, "as many keys as values; set an even number"),
        (ViltLoraConfig, {"targets": "ko"}, "'qv', 'qkv', 'qkvo', 'mlp' or 'all'"),
        (ViltAdapterConfig, {"placement": "parallel"}, "'pfeiffer', 'adaptformer' or 'houlsby'"),
        (ViltFullConfig, {"parts": "norms"}, "'all', 'head', 'layer_norm' or 'bias'"),
        (ViltFullConfig, {"itm_weight": -1}, "greater than or equal to 0"),
        (ViltFullConfig, {"false_captions": 0}, "greater than or equal to 1"),
        (ViltLoraConfig, {"pooler": True}, "Extra inputs are not permitted"),
    ],
)
def test_impossible_settings_are_refused(config, options, says):
    with pytest.raises(ValidationError, match=says):
        config.model_validate(options)
    ViltPromptConfig(tokens=5)  # at the input, any number of prompts will do
