"""`benchmark ls methods`, and the sizes and first weights of every method, as built."""

import hashlib
import io
import json
import subprocess
import sys
from typing import get_args

import pytest
import torch
from cli_calls import call
from rich.console import Console
from support import ROOT

from petlbench.harness import variants
from petlbench.harness.cli.method_page import render_page
from petlbench.harness.describe import description, fields_of
from petlbench.methods import registry
from petlbench.methods.backbones.random_models import random_clip, random_two_tower, random_vilt
from petlbench.methods.backbones.registry import load_backbone
from petlbench.methods.backbones.shapes import shape_only, untouched
from petlbench.methods.base import Family, MethodConfig
from petlbench.methods.recipe import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")

SOURCES = {name: source for name, source in registry.discover().items() if source.builtin}
OTHERS = {"ViT-B-16": 149_620_737, "ViT-L-14": 427_616_513}


@pytest.fixture(scope="module")
def shapes():
    return {name: shape_only(name) for name in (variants.REFERENCE, *OTHERS)}


def loaded(name):
    return registry.load(SOURCES[name])


def forms(cls):
    """Every distinct configuration that is declared, by a name for messages."""
    named = {"default": {}, **{f"preset {n}": p.method for n, p in cls.presets.items()}}
    named |= {f"variant {n}": v.method for n, v in cls.variants.items()}
    distinct = {cls.Config.model_validate(dict(options)).model_dump_json(): name for name, options in named.items()}
    return {name: named[name] for name in distinct.values()}


# Shapes


def test_a_shape_has_the_parameters_of_the_model_and_no_values(shapes):
    assert {name: sum(p.numel() for p in s.parameters()) for name, s in shapes.items()} == {
        variants.REFERENCE: variants.REFERENCE_TOTAL,
        **OTHERS,
    }
    assert all(p.is_meta for s in shapes.values() for p in s.parameters())


def test_a_shape_is_the_loaded_backbone_without_values(shapes):
    real = load_backbone("ViT-B-32", pretrained="random")
    shape = shapes["ViT-B-32"]
    assert {n: p.shape for n, p in real.named_parameters()} == {n: p.shape for n, p in shape.named_parameters()}
    assert (real.embed_dim, real.trims_text, real.provenance.kind) == (512, shape.trims_text, shape.provenance.kind)


def test_building_leaves_the_shape_as_it_was(shapes):
    before = [name for name, _ in shapes["ViT-B-32"].named_parameters()]
    variants.measure(loaded("lora"), {}, shapes["ViT-B-32"])
    assert [name for name, _ in shapes["ViT-B-32"].named_parameters()] == before
    assert untouched(shapes["ViT-B-32"]).tokenizer is shapes["ViT-B-32"].tokenizer


# Every method


@pytest.mark.parametrize("name", SOURCES)
def test_every_variant_has_its_declared_size(name):
    cls = loaded(name)
    found = {n: variants.measure(cls, v.method, variants.reference(cls)) for n, v in cls.variants.items()}
    assert {n: size.trainable for n, size in found.items()} == {n: v.trainable for n, v in cls.variants.items()}
    assert all(size.reason is None for size in found.values())


@pytest.mark.parametrize("architecture", [variants.REFERENCE, *OTHERS])
@pytest.mark.parametrize("name", SOURCES)
def test_sizes_follow_the_closed_form_on_every_backbone(name, architecture, shapes):
    cls = loaded(name)
    backbone = variants.reference(cls) if architecture == variants.REFERENCE else shapes[architecture]
    # B/16 differs from B/32 in its patches alone, so there one form is enough; L/14 has other widths and depths.
    declared = {"default": {}} if architecture == "ViT-B-16" else forms(cls)
    for form, options in declared.items():
        closed = variants.declared(cls, options, backbone)
        if closed.trainable is None and closed.reason is None:
            continue  # the method declares no closed form
        assert variants.measure(cls, options, backbone).trainable == closed.trainable, form


@pytest.mark.parametrize("name", SOURCES)
def test_every_method_says_what_it_is(name):
    cls = loaded(name)
    assert cls.family in get_args(Family) and cls.title
    assert cls.paper or any("no paper" in line for line in cls.choices)
    assert all(line.endswith(".") for line in cls.choices)


# First weights

_HASHES = """
import json, sys
import torch
sys.path.insert(0, {tests!r})
from test_ls_methods import first_weights, loaded
torch.manual_seed(11)
before = torch.get_rng_state()
for name in {names!r}:
    loaded(name)
assert torch.equal(before, torch.get_rng_state()), "loading methods draws random numbers"
print(json.dumps({{name: first_weights(name) for name in reversed({names!r})}}))
"""


def first_weights(name, seed=3):
    """Hash of every tensor of the freshly built model, on each kind of backbone that it fits."""
    cls = loaded(name)
    digest = hashlib.sha256()
    fits = 0
    for make in (random_clip, random_two_tower, random_vilt):
        method, backbone = cls(), make()
        if method.refuse(backbone) is None:
            fits += 1
            torch.manual_seed(seed)
            for key, tensor in method.build(backbone).state_dict().items():
                digest.update(key.encode() + tensor.detach().contiguous().numpy().tobytes())
    assert fits, f"{name} was built on none"
    return digest.hexdigest()


def test_first_weights_depend_on_the_seed_alone():
    """Not on what was built before, nor on the process; and loading a method draws nothing."""
    names = list(SOURCES)
    forward = {name: first_weights(name) for name in names}
    code = _HASHES.format(tests=str(ROOT / "tests"), names=names)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == forward


def test_another_seed_gives_other_first_weights():
    assert first_weights("lora", seed=4) != first_weights("lora", seed=3)


# The verb


def test_the_table_builds_nothing(monkeypatch):
    def fail(*_):
        raise AssertionError("built")

    monkeypatch.setattr(variants, "measure", fail)
    called = call("ls", "methods")
    assert called.code == 0 and called.out.splitlines()[0].split()[:3] == ["name", "title", "family"]
    (line,) = (line for line in called.out.splitlines() if line.startswith("lora "))
    assert "737,280" in line and "0.487" in line and "matched" in line and "reparameterisation" in line


def test_json_gives_measured_sizes_of_every_form():
    (lora,) = call("ls", "methods", "lora", "--json").json
    cls = loaded("lora")
    assert (lora["trainable"], lora["total"]) == (737_280, 737_280 + variants.REFERENCE_TOTAL)
    assert lora["percent"] == pytest.approx(100 * 737_280 / 151_277_313)
    assert lora["family"] == "reparameterisation" and lora["choices"] == list(cls.choices)
    assert lora["variants"].keys() == cls.variants.keys()
    for name, variant in lora["variants"].items():
        assert variant["trainable"] == variant["declared"] == cls.variants[name].trainable
        assert variant["total"] == variant["trainable"] + variants.REFERENCE_TOTAL
    matched = lora["presets"]["matched"]
    assert matched["train"] == Recipe(**cls.presets["matched"].train).model_dump(mode="json")
    assert matched["method"]["rank"] == 8 and matched["trainable"] == 737_280


def test_a_name_shows_everything():
    shown = " ".join(call("ls", "methods", "lora").out.split())
    for part in ("Hu et al.", "huggingface/peft", "Apache-2.0", "alpha / rank", "737,280"):
        assert part in shown
    for heading in ("Source", "Options", "Size on ViT-B/32", "Presets", "Search space", "Choices that are ours"):
        assert heading in shown
    assert " ".join(loaded("lora").choices[0].split()) in shown
    assert "Published rows" in call("ls", "methods", "zero_shot").out


def test_the_page_of_every_method_shows_its_presets():
    for name in SOURCES:
        out = io.StringIO()
        cls = loaded(name)
        row = description(cls, "petlbench", variants.reference(cls))
        render_page(row, fields_of(cls.Config), Console(file=out, width=200))
        for preset in cls.presets:
            assert f"  {preset}: " in out.getvalue(), name


def test_an_unknown_name_is_a_mistake_and_an_empty_pattern_is_not():
    assert "did you mean lora" in call("ls", "methods", "lorra").error
    assert call("ls", "methods", "no_such_*", "--json").json == []


PLUGIN = '''
"""A plugin."""
import torch
from torch import nn
from petlbench.methods.base import Method, MethodConfig, Variant


class {name}(Method):
    title = "A plugin"
    family = "head"
    kinds = {kinds}
    variants = {{"whole": Variant({{}}, 512)}}

    def build(self, backbone):
        first = {first}
        backbone.extra = nn.Parameter(first)
        return backbone

    def trainable(self, model):
        return ["extra"]

    def expected_trainable(self, backbone):
        return 512
'''


def plugin(folder, name, kinds='("open_clip",)', first="torch.zeros(512)"):
    path = folder / f"{name}.py"
    path.write_text(PLUGIN.format(name=name.capitalize(), kinds=kinds, first=first))
    return path


def test_a_method_that_refuses_vit_b_32_has_no_size_but_a_reason(tmp_path):
    path = plugin(tmp_path, "towers", kinds='("two_tower",)')
    (row,) = call("ls", "methods", "towers", "--plugin", path, "--json").json
    assert row["trainable"] is row["total"] is row["percent"] is None
    assert "works on backbones of kind two_tower" in row["reason"]
    assert row["variants"]["whole"]["trainable"] is None and "two_tower" in row["variants"]["whole"]["reason"]
    assert "two_tower" in call("ls", "methods", "towers", "--plugin", path).out
    (line,) = (line for line in call("ls", "methods", "tow*", "--plugin", path).out.splitlines() if "towers" in line)
    assert " - " in line


def test_a_build_that_reads_weights_is_counted_too(tmp_path):
    """Values are made only for such a method: here the norm's own weights, read one by one."""
    path = plugin(tmp_path, "reader", first="torch.tensor(backbone.clip.ln_final.weight.tolist())")
    (row,) = call("ls", "methods", "reader", "--plugin", path, "--json").json
    assert (row["trainable"], row["total"]) == (512, 512 + variants.REFERENCE_TOTAL)


def test_settings_carry_the_words_under_them():
    class Base(MethodConfig):
        rank: int = 8
        """How many
        directions."""
        silent: bool = False

    class Config(Base):
        rank: int = 4
        scale: float
        """Of the update."""

    fields = fields_of(Config)
    assert fields["rank"] == {"type": "int", "default": "4", "doc": "How many directions."}
    assert fields["scale"] == {"type": "float", "default": "required", "doc": "Of the update."}
    assert fields["silent"]["doc"] == ""
