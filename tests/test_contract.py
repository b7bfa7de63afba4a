"""Every registered method keeps the contract; methods broken on purpose are caught by the right check."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from petlbench.harness.contract import check_method
from petlbench.methods import registry
from petlbench.methods.base import Domain, Method, MethodConfig, MethodError, Preset, Published, parameters_under
from petlbench.methods.layers.frozen_image import FrozenImageTower
from petlbench.methods.linear_probe import LinearProbe
from petlbench.methods.pair import PairMethod
from petlbench.methods.recipe import LossConfig

BROKEN = Path(__file__).parent / "broken_methods"
BUILTIN = [name for name, source in registry.discover().items() if source.builtin]


pytestmark = pytest.mark.usefixtures("one_thread")


def load_broken(name: str) -> type[Method]:
    return registry.load(registry.discover([BROKEN / f"{name}.py"])[name])


def failures(cls: type[Method]) -> dict[str, str]:
    if not hasattr(cls, "name"):
        cls.name = cls.__name__.lower()
    return {check.name: check.message for check in check_method(cls) if check.outcome == "failed"}


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_methods_keep_the_contract(name):
    cls = registry.load(registry.discover()[name])
    checks = check_method(cls)
    assert not [c for c in checks if c.outcome == "failed"]
    # and the promises were really looked at, on every kind that the method declares
    kept = {(c.name, c.subject) for c in checks if c.outcome == "ok"}
    subjects = {
        "open_clip": "random-clip",
        "two_tower": "random-two-tower",
        "swin_bert": "random-swin-bert",
        "vilt": "random-vilt",
    }
    pairs = issubclass(cls, PairMethod)
    for kind in cls.kinds:
        if kind == "two_tower" and cls.needs_alignment:
            continue
        result = "scores" if pairs else "embeddings"
        for needed in ("build", "count", "loss", result, "batch independence", "save and load"):
            assert (needed, subjects[kind]) in kept
        # Only a method that says so sees padding; then captions are never trimmed under it.
        assert (("text padding", subjects[kind]) in kept) == (name != "harma")
        for promised in ("identity_start", "keeps_states" if pairs else "head_only"):
            assert ((promised, subjects[kind]) in kept) == getattr(cls, promised)
        assert (("training", subjects[kind]) in kept) == cls.trains
        if name in ("pir", "pir_petl", "coop", "cocoop"):
            assert ("side_features", subjects[kind]) in kept


@pytest.mark.parametrize(
    ("name", "check", "says"),
    [
        ("out_proj_lora", "gradients", "does not depend on any trained parameter"),
        ("freezes_nothing", "count", r"scalars are trained but expected_trainable\(\) declares 16"),
        ("random_start", "identity_start", "promises identity_start"),
        ("mixes_rows", "batch independence", "with the other rows of its batch"),
        ("batch_norm", "frozen", "batch norm"),
        ("imports_ray", "imports", r"imports_ray\.py:17 imports ray"),
    ],
)
def test_broken_methods_are_caught(name, check, says):
    found = failures(load_broken(name))
    assert check in found
    assert re.search(says, found[check])
    # nothing else is blamed, except what follows from the same fault
    consequences = {"gradients": {"training"}, "frozen": {"save and load"}}
    assert set(found) - {check} <= consequences.get(check, set())


class _Probe(LinearProbe):
    """The method that the variants below spoil; itself sound."""

    name = "probe"
    presets = {"matched": Preset()}
    published = ()


def test_the_base_of_the_variants_is_sound():
    assert failures(_Probe) == {}


class WrongDefault(_Probe):
    class Config(MethodConfig):
        rank: int  # no default


class NoMatched(_Probe):
    presets = {"paper": Preset()}


class BadPreset(_Probe):
    presets = {"matched": Preset(train={"learning_rate": 1e-3})}


class BadSpaceField(_Probe):
    space = {"method.rnak": Domain("choice", (1, 2))}


class BadSpaceSection(_Probe):
    space = {"optimizer.lr": Domain("loguniform", (1e-4, 1e-2))}


class BadSpaceValue(_Probe):
    space = {"method.form": Domain("choice", ("auto", "conv"))}


class BadSpaceOrder(_Probe):
    space = {"train.lr": Domain("loguniform", (1e-2, 1e-4))}


class BadSpaceZero(_Probe):
    space = {"train.lr": Domain("loguniform", (0.0, 1e-4))}


class FractionsNotPercent(_Probe):
    published = (Published("rsicd", "a table", (10.0, 20.0, 130.0, 10.0, 20.0, 30.0)),)


class FallingRecall(_Probe):
    published = (Published("rsicd", "a table", (10.0, 20.0, 30.0, 10.0, 2.0, 30.0)),)


class UnknownKind(_Probe):
    kinds = ("imaginary",)


class AcceptsAnything(_Probe):
    kinds = ("open_clip",)

    def refuse(self, backbone):
        return None


class RefusesSilently(_Probe):
    def refuse(self, backbone):
        return ""


class RefusesAll(_Probe):
    def refuse(self, backbone):
        return "not today"


class FailsToBuild(_Probe):
    def build(self, backbone):
        return backbone.image.blokcs


class BuildsNothing(_Probe):
    def build(self, backbone):
        return None


class UnknownNames(_Probe):
    def trainable(self, model):
        return ["image_map.wieght"]


class NothingTrained(_Probe):
    kinds = ("open_clip",)

    def trainable(self, model):
        return []


class VectorLoss(_Probe):
    def loss(self, model, batch):
        return {"infonce": torch.ones(len(batch), requires_grad=True)}


class InfiniteLoss(_Probe):
    def loss(self, model, batch):
        return {name: value / 0 for name, value in super().loss(model, batch).items()}


class NeedsLabels(_Probe):
    def loss(self, model, batch):
        return {"infonce": super().loss(model, batch)["infonce"] + 0 * batch.labels.sum()}


class WrongShape(_Probe):
    def head_image(self, model, pooled):
        return super().head_image(model, pooled)[:, None]

    def loss(self, model, batch):
        pooled = model.backbone.image.pooled(batch.images) if hasattr(model, "backbone") else None
        image = (
            model.image_map(model.backbone.project_image(pooled))
            if pooled is not None
            else model.encode_image(batch.images)
        )
        return {"mean": (image * self.encode_text(model, batch.tokens)).mean() * 100}


class Noisy(_Probe):
    identity_start = False

    def head_image(self, model, pooled):
        embedding = super().head_image(model, pooled)
        return embedding + 0.1 * torch.randn_like(embedding)


class SeesPadding(_Probe):
    head_only = False
    identity_start = False

    def encode_text(self, model, tokens):
        return super().encode_text(model, tokens) + (tokens.ids == 0).float().mean(1, keepdim=True)


class ChangesTowers(_Probe):
    """Trains the last norm of a tower, yet promises that pooled outputs never change."""

    def build(self, backbone):
        return backbone

    def trainable(self, model):
        return parameters_under(model, "clip.visual.ln_post", "vision.layernorm")

    def expected_trainable(self, backbone):
        return 2 * backbone.image.width


class ForgetsHeads(_Probe):
    """Does part of its work outside head_image."""

    identity_start = False

    def encode_image(self, model, images):
        return super().encode_image(model, images) + 1


class TrainsItsSide(FrozenImageTower, _Probe):
    """Trains a norm of the tower whose outputs it promises to be frozen."""

    head_only = False
    build, trainable, expected_trainable = (
        ChangesTowers.build,
        ChangesTowers.trainable,
        ChangesTowers.expected_trainable,
    )


class ForgetsTheSide(FrozenImageTower, _Probe):
    """Keeps outputs of the tower, then gives them away without the head."""

    head_only = False

    def encode_image_beside(self, model, images, side):
        return self.encode_image(model, images) if side is None else self._dual(model).project_image(side) + 1


class TwoZeros(_Probe):
    """Both factors start at zero: gradients exist and are zero for ever."""

    kinds = ("open_clip",)

    def build(self, backbone):
        model = super().build(backbone)
        model.a = nn.Parameter(torch.zeros(1))
        model.b = nn.Parameter(torch.zeros(1))
        return model

    def trainable(self, model):
        return [*super().trainable(model), "a", "b"]

    def expected_trainable(self, backbone):
        return super().expected_trainable(backbone) + 2

    def head_image(self, model, pooled):
        return super().head_image(model, pooled) * (1 + model.a * model.b)


class UnseededBuild(_Probe):
    """Untrained noise that a fixed seed does not bring back."""

    identity_start = False
    _builds = 0

    def build(self, backbone):
        type(self)._builds += 1
        model = super().build(backbone)
        model.offset = float(self._builds)
        return model

    def head_image(self, model, pooled):
        return super().head_image(model, pooled) + model.offset


class LearnsBesideTheModel(_Probe):
    def compare(self, model, batch, *views):
        self.mean = views[0].detach().mean(0)
        return super().compare(model, batch, *views)

    def head_image(self, model, pooled):
        return super().head_image(model, pooled) - getattr(self, "mean", 0)


class ComparesRows(_Probe):
    splits_by_row = True


class MisspeltDomain(_Probe):
    space = {"train.lr": Domain("log_uniform", (1e-3, 1e-1))}


class ChoiceOfLists(_Probe):
    space = {"train.betas": Domain("choice", ((0.9, 0.98), (0.9, 0.999)))}


class PlainPreset(_Probe):
    presets = {"matched": {"train": {"lr": 1e-2}}}


class FailsAtOnce(_Probe):
    def __init__(self, config=None, loss=None):
        super().__init__(config, loss)
        if config is not None:
            raise RuntimeError("not today")


class Transposed(_Probe):
    """Sound: a trained tensor need not lie in one piece."""

    def build(self, backbone):
        model = super().build(backbone)
        if hasattr(model, "image_map"):  # not on unaligned towers, whose own heads are trained
            weight = model.image_map.weight
            model.image_map.weight = torch.nn.Parameter(weight.detach().t().contiguous().t())
        return model


def test_trained_tensors_need_not_be_contiguous():
    assert failures(Transposed) == {}


@pytest.mark.parametrize(
    ("cls", "check", "says"),
    [
        (WrongDefault, "config", r"Config\(\) is not valid: rank: field required"),
        (NoMatched, "presets", "no preset `matched`"),
        (BadPreset, "presets", "presets\\['matched'\\].train is not valid: learning_rate: extra"),
        (BadSpaceField, "space", "LinearProbeConfig has no field 'rnak' \\(form\\)"),
        (BadSpaceSection, "space", "expected method.FIELD or train.FIELD"),
        (BadSpaceValue, "space", "'conv' is not valid"),
        (BadSpaceOrder, "space", "low < high"),
        (BadSpaceZero, "space", "positive lower end"),
        (FractionsNotPercent, "published", "six percentages"),
        (FallingRecall, "published", "t2i R@1, 5, 10 must not fall"),
        (UnknownKind, "declaration", "kinds is \\('imaginary',\\)"),
        (AcceptsAnything, "refusal", "accepts an unaligned two_tower"),
        (RefusesSilently, "refusal", "returned ''"),
        (RefusesAll, "coverage", "no random backbone"),
        (FailsToBuild, "build", r"AttributeError: .*blokcs.*test_contract\.py:\d+"),
        (BuildsNothing, "build", r"build\(\) returned None"),
        (UnknownNames, "trainable", "image_map.wieght"),
        (NothingTrained, "trainable", "names nothing"),
        (VectorLoss, "loss", r"'infonce': \(8,\)"),
        (InfiniteLoss, "loss", "loss 'infonce' is inf"),
        (NeedsLabels, "loss", "AttributeError"),
        (WrongShape, "embeddings", r"shape \(8, 1, 16\)"),
        (Noisy, "deterministic", "two passes in evaluation mode"),
        (SeesPadding, "text padding", "padding tokens are cut off"),
        (ChangesTowers, "head_only", "pooled outputs are not those of the untouched"),
        (ForgetsHeads, "head_only", "head_image and head_text"),
        (TrainsItsSide, "side_features", "changed with training"),
        (ForgetsTheSide, "side_features", "encode_image_beside"),
        (TwoZeros, "training", "2 of 6 trained tensors have not moved .* a, b;"),
        (UnseededBuild, "save and load", "not repeatable"),
        (LearnsBesideTheModel, "save and load", "something outside trainable"),
        (ComparesRows, "splits by row", "promises splits_by_row, but the loss of a batch is"),
        (MisspeltDomain, "space", "unknown kind 'log_uniform'; did you mean `loguniform`"),
        (ChoiceOfLists, "space", "a choice is made of numbers, texts, booleans and None"),
        (PlainPreset, "presets", "'dict' object has no attribute 'method'"),
        (FailsAtOnce, "construct", "RuntimeError: not today"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_broken_promises_are_caught(cls, check, says):
    found = failures(cls)
    assert check in found, found
    assert re.search(says, found[check]), found[check]


def test_an_unkept_promise_is_not_looked_for():
    class Quiet(_Probe):
        head_only = False
        identity_start = False

    outcomes = {(c.name, c.outcome) for c in check_method(Quiet)}
    assert ("head_only", "not applicable") in outcomes
    assert ("identity_start", "not applicable") in outcomes


def test_every_distinct_preset_runs():
    class Presets(_Probe):
        presets = {
            "paper": Preset({"form": "embedding"}, {"lr": 1e-4}),
            "matched": Preset(),
            "same": Preset(train={"lr": 0.5}),
            "masked": Preset(train={"loss": {"mask_duplicates": True}}),
        }

    subjects = dict.fromkeys(c.subject for c in check_method(Presets))
    assert [s for s in subjects if s.startswith("random-clip")] == [
        "random-clip",
        "random-clip, preset paper",
        "random-clip, preset masked",
    ]


def test_an_error_of_the_method_keeps_its_own_words():
    class Refuses(_Probe):
        def build(self, backbone):
            raise MethodError("rank 7 does not divide 32; give 8")

    assert failures(Refuses)["build"] == "rank 7 does not divide 32; give 8"


def test_loss_of_the_preset_is_used():
    seen = []

    class Notes(_Probe):
        presets = {"matched": Preset(train={"loss": {"name": "multi_positive"}})}

        def __init__(self, config=None, loss=None):
            super().__init__(config, loss)
            seen.append(self.loss_config)

    failures(Notes)
    assert LossConfig(name="multi_positive") in seen


def test_the_check_leaves_the_random_state_of_torch_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    check_method(_Probe)
    assert torch.equal(torch.get_rng_state(), before)
