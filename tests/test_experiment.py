"""Experiment files and command-line options, which mean the same thing."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT

from petlbench.harness.experiment import EMBEDDED, ExperimentError, load_experiment, merged, parse_assignment
from petlbench.methods.recipe import Recipe
from petlbench.methods.registry import discover, resolve


def write(folder, text):
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(match, path=None, sets=(), **options):
    with pytest.raises(ExperimentError, match=match):
        load_experiment(path, sets, **options)


def test_without_file_and_options_every_default_holds():
    experiment = load_experiment()
    assert (experiment.methods, experiment.datasets, experiment.backbones) == (
        ["all-methods"],
        ["scenes"],
        ["tiny-clip"],
    )
    assert (experiment.seeds, experiment.preset, experiment.results) == ([0, 1, 2], "matched", "results")
    assert experiment.protocol.selection == "best_val"


def test_the_embedded_experiment_asks_for_all_methods_and_three_seeds_without_data_or_network():
    embedded = load_experiment(EMBEDDED)
    assert embedded.methods == ["all-methods"] and len(set(embedded.seeds)) == 3
    assert (
        embedded.datasets == ["scenes"]
        and embedded.backbones == ["tiny-clip", "tiny-vilt"]
        and embedded.dataset.keys() == {"scenes"}
    )


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiments_of_committed_records_ask_for_methods_there_are(path):
    experiment = load_experiment(path)
    assert resolve(experiment.methods, discover())
    assert experiment.title and experiment.backbone.keys() <= set(experiment.backbones)


def test_full_fine_tuning_on_rsicd_and_the_alignment_are_one_trial():
    align, board = (
        load_experiment(ROOT / "results" / "experiments" / f"rsicd_{name}.yaml") for name in ("align", "112px")
    )
    assert set(align.methods) <= set(board.methods) and set(align.seeds) <= set(board.seeds)
    for part in ("datasets", "backbones", "backbone", "train", "method", "protocol", "engine", "preset"):
        assert getattr(align, part) == getattr(board, part), part


def test_file_options_and_assignments_mean_the_same(tmp_path):
    path = write(
        tmp_path,
        "methods: [lora, zero_shot]\ndatasets: [ucm]\nbackbones: ['ViT-B-32:openai']\nseeds: [4, 5]\npreset: paper\n"
        "method:\n  lora:\n    rank: 16\n    train: {lr: 1.0e-4}\ndataset:\n  ucm: {root: /data}\n"
        "protocol: {selection: last}\nplugins: [a.py]\nresults: out\n",
    )
    by_options = load_experiment(
        None,
        ["method.lora.rank=16", "method.lora.train.lr=1.0e-4", "dataset.ucm.root=/data", "protocol.selection=last"],
        methods=["lora", "zero_shot"],
        datasets=["ucm"],
        backbones=["ViT-B-32:openai"],
        seeds=[4, 5],
        preset="paper",
        plugins=["a.py"],
        results="out",
    )
    by_assignments = load_experiment(
        None,
        [
            "methods=[lora, zero_shot]",
            "datasets=[ucm]",
            "backbones=['ViT-B-32:openai']",
            "seeds=[4, 5]",
            "preset=paper",
            "plugins=[a.py]",
            "results=out",
            "method={lora: {rank: 16, train: {lr: 1.0e-4}}}",
            "dataset.ucm={root: /data}",
            "protocol={selection: last}",
        ],
    )
    assert load_experiment(path).model_dump() == by_options.model_dump() == by_assignments.model_dump()


def test_later_sources_win_and_leave_the_rest(tmp_path):
    path = write(tmp_path, "seeds: [1]\nresults: a\nmethod: {lora: {rank: 4, alpha: 2}}\n")
    experiment = load_experiment(path, ["method.lora.rank=16", "results=c"], seeds=[2], results="b", methods=None)
    assert experiment.seeds == [2] and experiment.results == "c"
    assert experiment.method == {"lora": {"rank": 16, "alpha": 2}}


@pytest.mark.parametrize(
    ("text", "line", "key", "hint"),
    [
        ("title: x\nmethds: [lora]\n", 2, "methds", "did you mean `methods`?"),
        ("engine:\n  zero_stge: 1\n", 2, "engine.zero_stge", "did you mean `zero_stage`?"),
        ("seeds: [0]\nprotocol:\n  # a remark\n  select: last\n", 4, "protocol.select", "did you mean `selection`?"),
        ("resources: {max_concurent: 2}\n", 1, "resources.max_concurent", "did you mean `max_concurrent`?"),
        ("engine:\n  qqq: 1\n", 2, "engine.qqq", "known: offload, zero_stage"),
    ],
)
def test_unknown_keys_of_a_file_are_told_with_line_and_nearest_key(tmp_path, text, line, key, hint):
    path = write(tmp_path, text)
    refused(f"^{re.escape(str(path))}:{line}: key `{re.escape(key)}` is unknown; {re.escape(hint)}", path)


def test_unknown_keys_of_the_command_line_are_not_blamed_on_the_file():
    refused("^the command line: key `tranin` is unknown; did you mean `train`", EMBEDDED, ["tranin=1"])
    refused("^the command line: key `engine.zero_stag` is unknown; did you mean", EMBEDDED, ["engine.zero_stag=1"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: three\n", ":1: key `seeds` has the value 'three'"),
        ("seeds: [0, -1]\n", ":1: key `seeds.1` has the value -1"),
        ("seeds: []\n", ":1: key `seeds` has the value []"),
        ("title: a\nmethods: []\n", ":2: key `methods` has the value []"),
        ("engine: {zero_stage: 4}\n", ":1: key `engine.zero_stage` has the value 4"),
        ("protocol: {selection: best}\n", "'best_val', 'last' or 'test_max'"),
        ("train:\n", ":1: key `train` has the value None"),
        ("seeds: [0]\nseeds: [1]\n", ":2: key `seeds` is given twice (first on line 1)"),
        ("seeds: [0\n", "not valid YAML"),
        ("- lora\n", "expected `key: value` lines at the top level"),
        ("", "expected `key: value` lines at the top level"),
        ("title: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        ("title: 2020-13-45\n", "not valid YAML (month must be in 1..12)"),
    ],
)
def test_wrong_files_are_refused_with_the_place(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ExperimentError) as caught:
        load_experiment(path)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    refused("nowhere.yaml: cannot be read", tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("train.lr=on", "key `train.lr` has the value True; expected a number"),
        ("train.epochs=yes", "key `train.epochs` has the value True; expected a number"),
        ("train.betas=[0.9, no]", "has the value False; expected a number"),
        ("seeds=[no]", "key `seeds.0` has the value False; expected a number"),
        ("train.epochs=1:30", "key `train.epochs` has the value '1:30'"),
        ("search.time=1:30", "90s, 30m, 2h or 1h30m"),
    ],
)
def test_words_and_old_spellings_of_numbers_are_no_numbers(assignment, said):
    with pytest.raises(ExperimentError) as caught:
        experiment = load_experiment(None, [assignment])
        experiment.checked_section(Recipe, "train")
    assert said in str(caught.value), caught.value


def test_whole_numbers_are_decimal(tmp_path):
    path = write(tmp_path, "seeds: [010, -0, +7]\ntitle: 0x1F\n")
    experiment = load_experiment(path, ["train.epochs=010", "train.lr=1e-3"])
    assert experiment.seeds == [10, 0, 7] and experiment.title == "0x1F"
    assert experiment.train == {"epochs": "010", "lr": "1e-3"}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("method.lora.rank", "expected KEY=VALUE, as in method.lora.rank=16"),
        ("=3", "expected KEY=VALUE"),
        ("method..rank=3", "expected a dotted key"),
        (".x=1", "expected a dotted key"),
        ("train.lr=[1", "the value is not valid YAML"),
        ("title=2020-13-45", "month must be in 1..12"),
        ("seeds.0=1", "`seeds` holds [5], not a section"),
        ("method.lora.rank.x=1", "`method.lora.rank` holds 4, not a section"),
    ],
)
def test_wrong_assignments_are_quoted(tmp_path, assignment, message):
    path = write(tmp_path, "seeds: [5]\nmethod: {lora: {rank: 4}}\n")
    with pytest.raises(ExperimentError) as caught:
        load_experiment(path, [assignment])
    assert f"--set {assignment}: " in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("name", ["my.card.yaml", "./sets/my.card.yaml", "../x.yaml", "/a/b.c/d.yml"])
def test_names_with_dots_are_taken_whole(name):
    experiment = load_experiment(None, [f"dataset.{name}.root=DIR"], datasets=[name, "scenes"])
    assert experiment.dataset == {name: {"root": "DIR"}}


def test_assignments_do_not_change_what_the_caller_gave():
    given_sections = {"lora": {"rank": 4}}
    assert load_experiment(None, ["method.lora.rank=8"], method=given_sections).method == {"lora": {"rank": 8}}
    assert given_sections == {"lora": {"rank": 4}}


def test_a_value_may_hold_an_equals_sign():
    assert parse_assignment("a.b=c=d", "x=1") == ("a.b", "c=d")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text("abc xyz:-#'\"é", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
TREES = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=3)


@given(st.lists(st.text("abcdefgh_", min_size=1, max_size=6), min_size=1, max_size=3), VALUES)
def test_an_assignment_puts_any_value_under_its_key(keys, value):
    experiment = load_experiment(None, [f"train.{'.'.join(keys)}={json.dumps(value)}"])
    found = experiment.train
    for key in keys:
        found = found[key]
    assert found == value


# Layers of one schema: a key is a section in all of them or in none, as the models that check them demand. Without that
# no rule can be associative: a value in the middle ends the section below it, and the section above starts another.
LEAVES = st.none() | st.booleans() | st.integers(-9, 9) | st.lists(st.integers(0, 9), max_size=2)
LAYERS = st.fixed_dictionaries(
    {},
    optional={
        "a": LEAVES,
        "b": LEAVES,
        "section": st.fixed_dictionaries(
            {}, optional={"a": LEAVES, "c": LEAVES, "inner": st.dictionaries(st.sampled_from("xy"), LEAVES)}
        ),
    },
)


@given(LAYERS, LAYERS, LAYERS)
def test_merging_layers_of_one_schema_is_associative(a, b, c):
    assert merged(a, merged(b, c)) == merged(merged(a, b), c) == merged(a, b, c)


@given(TREES, TREES)
def test_the_last_layer_wins(a, b):
    assert merged(a, {}) == merged({}, a) == a
    for key, value in merged(a, b).items():
        if key not in b:
            assert value == a[key]
        elif not (isinstance(b[key], dict) and isinstance(a.get(key), dict)):
            assert value == b[key]


def test_merging_changes_no_layer():
    base = {"loss": {"name": "infonce"}}
    assert merged(base, {"loss": {"mask_duplicates": True}}) == {"loss": {"name": "infonce", "mask_duplicates": True}}
    assert base == {"loss": {"name": "infonce"}}


def test_a_section_lies_over_its_base_key_by_key(tmp_path):
    path = write(tmp_path, "train:\n  loss: {mask_duplicates: true}\n")
    base = {"lr": 0.5, "loss": {"name": "multi_positive"}}
    recipe = load_experiment(path, ["train.lr=0.25"]).checked_section(Recipe, "train", base=base)
    assert (recipe.lr, recipe.loss.name, recipe.loss.mask_duplicates) == (0.25, "multi_positive", True)


def test_a_section_that_is_not_there_is_its_base():
    assert load_experiment().checked_section(Recipe, "method", "lora", "train", base={"lr": 0.5}).lr == 0.5


def test_mistakes_in_a_section_are_told_where_they_were_made(tmp_path):
    path = write(tmp_path, "train:\n  epochs: 3\n  loss:\n    nme: x\n")
    with pytest.raises(ExperimentError, match=rf"^{re.escape(str(path))}:4: key `train.loss.nme` .* `name`\?"):
        load_experiment(path).checked_section(Recipe, "train")
    good = write(tmp_path, "train:\n  epochs: 3\n")
    with pytest.raises(ExperimentError, match=r"^the command line: key `train.epochs` has the value 'x'"):
        load_experiment(good, ["train.epochs=x"]).checked_section(Recipe, "train")


def test_a_value_where_a_section_belongs_is_named_with_its_line(tmp_path):
    path = write(tmp_path, "method:\n  lora:\n    train: 5\n")
    with pytest.raises(
        ExperimentError, match=r"mine.yaml:3: key `method.lora.train` has the value 5; expected a section"
    ):
        load_experiment(path).checked_section(Recipe, "method", "lora", "train")
