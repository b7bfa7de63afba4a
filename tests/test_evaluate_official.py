"""`benchmark evaluate` on checkpoints that the authors of a method released: whole or not at all."""

import hashlib
import json

import pytest
import torch
from cli_calls import call
from small_trials import SETS, small_trial

from petlbench.harness.trial import run_trial
from petlbench.methods.backbones.base import BackboneError
from petlbench.methods.backbones.random_models import random_clip

pytestmark = pytest.mark.usefixtures("small_world")
RELEASED = '''
"""Two scales, whose authors released them beside a temperature and the backbone's first norm."""
import torch
from torch import nn

from petlbench.methods.base import Method, Preset


class _Scaled(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.image_scale = nn.Parameter(torch.ones(backbone.embed_dim))
        self.text_scale = nn.Parameter(torch.ones(backbone.embed_dim))


class Released(Method):
    title = "Released"
    family = "head"
    official = "keys under `model.`"
    identity_start = True
    presets = {"matched": Preset(), "paper": Preset(train={"lr": 0.5})}

    def build(self, backbone):
        return _Scaled(backbone)

    def trainable(self, model):
        return ["image_scale", "text_scale"]

    def head_image(self, model, pooled):
        return super().head_image(model, pooled) * model.image_scale

    def head_text(self, model, pooled):
        return super().head_text(model, pooled) * model.text_scale

    def import_official(self, model, state):
        state.drop("model.temp", "the loss's temperature")
        return {name: state.take(f"model.scale.{name}") for name in ("image_scale", "text_scale")}
'''


@pytest.fixture
def released(tmp_path):
    """The plugin, and how to call `evaluate` with a checkpoint of given tensors."""
    plugin = tmp_path / "released.py"
    plugin.write_text(RELEASED)

    def evaluate(tensors, *options, suffix=".pth"):
        file = tmp_path / f"epoch30{suffix}"
        torch.save({"model": tensors, "config": {"lr": 1e-4}, "epoch": 30}, file)
        return call("evaluate", "released", "--plugin", plugin, "--official-checkpoint", file, *SETS, *options)

    return evaluate


def tensors(**changes):
    width = random_clip().embed_dim
    whole = {
        "model.scale.image_scale": torch.linspace(0.5, 2, width),
        "model.scale.text_scale": torch.linspace(2, 0.5, width),
        "model.temp": torch.tensor(0.07),
    }
    return {name: value for name, value in {**whole, **changes}.items() if value is not None}


def test_a_released_checkpoint_is_measured_with_its_origin(released, tmp_path):
    out = tmp_path / "measured.json"
    called = released(tensors(), "--out", out, "--json")
    assert called.code == 0, called
    report = json.loads(out.read_text())
    assert report == called.json
    weights = report["weights"]
    assert weights["kind"] == "official checkpoint" and weights["file"] == "epoch30.pth" and weights["tensors"] == 2
    assert weights["sha256"] == hashlib.sha256((tmp_path / "epoch30.pth").read_bytes()).hexdigest()
    assert weights["dropped"] == {"model.temp": "the loss's temperature"}
    assert report["params"] == {"trained": 32, "total": 32 + sum(p.numel() for p in random_clip().parameters())}
    assert report["spec"]["train"]["lr"] == 0.5, "the preset `paper` where there is no `official` one"
    assert "schema_version" not in report, "never taken for a record of a trial"
    zero_shot = run_trial(small_trial(tmp_path / "results", method="zero_shot")).metrics["test"].recalls
    ones = torch.ones(random_clip().embed_dim)
    same = released(tensors(**{"model.scale.image_scale": ones, "model.scale.text_scale": ones}), "--json")
    assert same.json["metrics"]["recalls"] == zero_shot != report["metrics"]["recalls"]
    shown = released(tensors()).out
    assert "2 tensors, 32 trained scalars" in shown and "set aside: 1 tensors (the loss's temperature)" in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.scale.text_scale": None}, "epoch30.pth: no tensor model.scale.text_scale"),
        ({"model.block.weight": torch.ones(2)}, "1 left over in the file: model.block.weight"),
        ({"model.scale.image_scale": torch.ones(3)}, "image_scale is (3,), expected (16,)"),
        ({"model.scale.image_scale": torch.full((16,), torch.nan)}, "holds NaN or infinity"),
    ],
)
def test_a_checkpoint_loads_whole_or_not_at_all(released, changes, message):
    assert message in released(tensors(**changes)).error


def test_nested_tables_and_settings_of_a_checkpoint_are_understood(tmp_path):
    from petlbench.methods.official import read_official

    layers = {"layer_0": {"q": {"A": torch.ones(2), "B": torch.zeros(2)}}}
    torch.save({"weights": layers, "metadata": {"alpha": 1, "encoder": "both"}}, tmp_path / "nested.pt")
    state = read_official(tmp_path / "nested.pt")
    assert sorted(state) == ["metadata.alpha", "weights.layer_0.q.A", "weights.layer_0.q.B"]
    assert int(state.take("metadata.alpha")) == 1 and state.config == {"metadata.encoder": "both"}
    torch.save({"model": {"module.w": torch.ones(1)}, "config": {"model": "geo"}, "epoch": 3}, tmp_path / "wrapped.pth")
    state = read_official(tmp_path / "wrapped.pth")
    assert list(state) == ["w"] and state.config == {"model": "geo"}
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(BackboneError, match=r"list\.pt: holds a list"):
        read_official(tmp_path / "list.pt")


def test_a_file_that_is_no_checkpoint_is_told(released, tmp_path):
    assert "weight files end in" in released(tensors(), suffix=".zip").error
    (tmp_path / "text.pth").write_text("hello")
    assert (
        "cannot be read as a plain table of weights"
        in call(
            "evaluate",
            "released",
            "--plugin",
            tmp_path / "released.py",
            "--official-checkpoint",
            tmp_path / "text.pth",
            *SETS,
        ).error
    )
    assert (
        "gone.pth was not found"
        in call(
            "evaluate",
            "released",
            "--plugin",
            tmp_path / "released.py",
            "--official-checkpoint",
            tmp_path / "gone.pth",
            *SETS,
        ).error
    )


def test_a_method_without_an_importer_names_those_that_have_one(tmp_path):
    file = tmp_path / "x.pth"
    torch.save({"w": torch.ones(1)}, file)
    assert (
        "method linear_probe has no importer"
        in call("evaluate", "linear_probe", "--official-checkpoint", file, *SETS).error
    )
