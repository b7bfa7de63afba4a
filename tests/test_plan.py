"""Plans: which trials, under which identity, and what is recorded already."""

import json

import pytest
from cli_calls import python, small_set
from data_files import precomp_set
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_calls import SCENES, ids, plan, plugin, refused
from support import ROOT

from petlbench.datasets.split import DataError
from petlbench.harness.experiment import EMBEDDED, ExperimentError, load_experiment
from petlbench.harness.plan import make_plan
from petlbench.harness.spec import Named, TrialSpec

# Identity


def fixed_spec(**update):
    fields = {
        "method": Named(name="lora", options={"rank": 8}),
        "dataset": Named(name="ucm", options={"blank": "error", "splits": {"train": "a" * 64}}),
        "backbone": Named(name="tiny-clip", options={"weights": "sha256:" + "b" * 64}),
        "train": {"epochs": 10, "lr": 1e-3},
        "seed": 0,
    }
    return TrialSpec(**{**fields, **update})


def test_the_spec_id_of_a_fixed_spec_never_changes():
    # Changing this on purpose makes every record in the world run again: raise TrialSpec.version with it.
    assert fixed_spec().spec_id == "aec55122463ff1a600116e7a47a0a43cd29f49340a8d226c069923188aedfca2"


@given(st.permutations(["rank", "alpha", "dropout"]))
def test_the_order_of_keys_does_not_matter(keys):
    values = {"rank": 8, "alpha": 2.0, "dropout": 0.0}
    expected = fixed_spec(method=Named(name="lora", options=values)).spec_id
    assert fixed_spec(method=Named(name="lora", options={k: values[k] for k in keys})).spec_id == expected


@settings(max_examples=25)
@given(st.sampled_from(["method", "dataset", "backbone"]), st.text("abc", min_size=1), st.integers())
def test_every_option_counts(part, key, value):
    named = getattr(fixed_spec(), part)
    other = Named(name=named.name, options={**named.options, key: value})
    assert fixed_spec(**{part: other}).spec_id != fixed_spec().spec_id


def test_ids_are_the_same_in_another_process_folder_and_results_folder(tmp_path):
    arguments = ("-m", "petlbench", "plan", "lora", "zero_shot", "--json", "--set", f"dataset={json.dumps(SCENES)}")
    done = python(*arguments, "--results", tmp_path / "x", cwd=tmp_path, env={"PYTHONHASHSEED": "77"})
    there = [row["spec_id"] for row in json.loads(done.stdout)["trials"]]
    here = make_plan(load_experiment(EMBEDDED, methods=["lora", "zero_shot"], dataset=SCENES))
    assert there == ids(here) and len(set(there)) == 4
    assert not (tmp_path / "x").exists()


def test_a_default_that_is_spelt_out_is_the_same_trial(tmp_path):
    spelt = ("method.lora.rank=8", "train.lr=1e-3", "train.loss.name=infonce", "dataset.scenes.seed=0")
    assert ids(plan(tmp_path, *spelt)) == ids(plan(tmp_path))
    assert ids(plan(tmp_path, "method.lora.rank=16")) != ids(plan(tmp_path))


def test_weights_count_by_content_not_by_path(tmp_path):
    def with_weights(name, content):
        path = tmp_path / name / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return plan(tmp_path, f"backbone.tiny-clip.weights={path}", seeds=[0])

    first, moved, other = with_weights("a", b"1"), with_weights("b", b"1"), with_weights("c", b"2")
    assert ids(first) == ids(moved) != ids(other)
    (trial,) = (p.trial for p in moved.planned)
    assert trial.paths.weights == {"weights": str(tmp_path / "b" / "b.safetensors")}
    assert str(tmp_path) not in trial.spec.model_dump_json()


def test_captions_count_but_not_where_they_lie(tmp_path):
    def of_set(folder, edit=lambda text: text):
        folder.mkdir()
        card, root = small_set(folder)
        annotations = root / "set.json"
        annotations.write_text(edit(annotations.read_text()))
        return plan(tmp_path, f"dataset.{card}.root={root}", datasets=[str(card)], dataset=None, seeds=[0])

    first, moved = of_set(tmp_path / "a"), of_set(tmp_path / "b")
    other = of_set(tmp_path / "c", lambda text: text.replace("number 3 seen from afar", "number 3 from afar"))
    assert ids(first) == ids(moved) != ids(other)
    assert str(tmp_path) not in moved.planned[0].trial.spec.model_dump_json()
    paths = moved.planned[0].trial.paths
    assert (paths.dataset_root, paths.dataset_card) == (
        str(tmp_path / "b" / "files"),
        str(tmp_path / "b" / "toyset.yaml"),
    )


def test_a_methods_weight_file_enters_by_its_content(tmp_path, monkeypatch):
    def planned(folder):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "prior.pth"
        path.write_bytes(b"weights")
        made = plan(tmp_path, f"method.pir_petl.prior_weights={path}", methods=["pir_petl"], seeds=[0])
        return path, made.planned[0].trial

    (one, first), (_, second) = planned("a"), planned("b")
    assert first.spec.spec_id == second.spec.spec_id
    assert first.spec.method.options["prior_weights"].startswith("sha256:")
    assert first.paths.method_files == {"prior_weights": str(one)} and str(tmp_path) not in first.spec.model_dump_json()
    assert not plan(tmp_path, methods=["pir_petl"], seeds=[0]).planned[0].trial.paths.method_files
    monkeypatch.setenv("PETLBENCH_WEIGHTS", str(tmp_path / "b"))
    named = plan(tmp_path, "method.pir_petl.prior_weights=prior.pth", methods=["pir_petl"], seeds=[0]).planned[0].trial
    assert named.spec == first.spec and named.paths.method_files == {"prior_weights": str(tmp_path / "b" / "prior.pth")}


# Which trials


def test_absolute_reader_paths_stay_out_of_the_spec(tmp_path):
    card, root = small_set(tmp_path / "here")
    elsewhere = tmp_path / "elsewhere" / "images"
    elsewhere.mkdir(parents=True)
    sets = (f"dataset.{card}.root={root}", f"dataset.{card}.image_dir={elsewhere}")
    made = plan(tmp_path, *sets, datasets=[str(card)], dataset=None, seeds=[0])
    trial = made.planned[0].trial
    assert str(tmp_path) not in trial.spec.model_dump_json()
    assert trial.spec.dataset.options["image_dir"] == "images"
    assert trial.paths.dataset_paths == {"image_dir": str(elsewhere)}


def test_paths_below_the_home_folder_are_those_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    card, root = small_set(tmp_path)
    (tmp_path / "val.txt").write_text("park_0.jpg\n")
    plugin(tmp_path, "{'matched': Preset()}")
    given = {
        "root": root,
        "annotations": root / "set.json",
        "image_dir": root / "pictures",
        "val_list": tmp_path / "val.txt",
    }
    home = {key: f"~/{path.relative_to(tmp_path)}" for key, path in given.items()}

    def trial(values, plugin):
        sets = (f"dataset.{card.stem}.{key}={value}" for key, value in values.items())
        options = {"datasets": [str(card)], "dataset": None, "methods": ["mine"], "plugins": [plugin], "seeds": [0]}
        return plan(tmp_path, *sets, **options).planned[0].trial

    assert trial(home, "~/mine.py") == trial(given, str(tmp_path / "mine.py"))
    assert trial(home, "~/mine.py").paths.plugins == [str(tmp_path / "mine.py")]
    with pytest.raises(DataError, match=r"~no-such-user/val.txt.* is not found"):
        trial({**home, "val_list": "~no-such-user/val.txt"}, "~/mine.py")


def test_the_embedded_plan_runs_every_method_once_per_seed_and_zero_shot_once(tmp_path):
    made = make_plan(load_experiment(EMBEDDED, dataset=SCENES, results=str(tmp_path)))
    trials = {}
    for p in made.planned:
        trials.setdefault(p.trial.spec.method.name, []).append(p.trial.spec.seed)
    builtin = {path.stem for path in (ROOT / "methods").glob("[a-z]*.py")} - {
        "base",
        "registry",
        "losses",
        "official",
        "pair",
        "recipe",
    }
    assert trials.keys() == builtin and trials["zero_shot"] == [0]
    assert trials["lora"] == trials["full_finetune"] == [0, 1, 2]
    assert not made.refused and made.to_run == made.planned
    assert len(set(ids(made))) == len(made.planned)


def test_a_method_that_trains_nothing_is_the_same_trial_under_any_recipe(tmp_path):
    assert ids(plan(tmp_path, "train.lr=0.5", methods=["zero_shot"])) == ids(plan(tmp_path, methods=["zero_shot"]))


def test_a_loss_that_a_method_does_not_take_is_told(tmp_path):
    options = {"methods": ["clip_fusion", "lora"], "seeds": [0]}
    assert plan(tmp_path, **options).notes == []
    (note,) = plan(tmp_path, "train.loss.name=hmmc", **options).notes
    assert note == "clip_fusion: this method has a loss of its own, so train.loss changes nothing there"


def test_what_trains_nothing_is_measured_on_the_captions_that_were_asked_for(tmp_path):
    raw, cleaned = (plan(tmp_path, *sets, methods=["zero_shot"]) for sets in ((), ("train.captions=cleaned",)))
    assert [p.trial.spec.train["captions"] for made in (raw, cleaned) for p in made.planned] == ["raw", "cleaned"]


def test_what_is_named_twice_runs_once(tmp_path):
    names = {"methods": ["lora", "lora"], "datasets": ["scenes", "scenes"], "backbones": ["tiny-clip"] * 2}
    assert len(plan(tmp_path, seeds=[1, 0, 1], **names).planned) == 2


def test_a_method_that_needs_alignment_is_left_out_on_unaligned_towers(tmp_path):
    (tmp_path / "image.safetensors").write_bytes(b"1")
    text = tmp_path / "text"
    text.mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer.json"):
        (text / name).write_bytes(b"1")
    files = (
        f"backbone.vits14-minilm.weights={tmp_path / 'image.safetensors'}",
        f"backbone.vits14-minilm.text_weights={text}",
    )
    made = plan(tmp_path, *files, methods=["zero_shot", "lora"], backbones=["vits14-minilm"], seeds=[0])
    assert [p.trial.spec.method.name for p in made.planned] == ["lora"]
    ((label, reason),) = made.refused
    assert label == "zero_shot/scenes/vits14-minilm" and "never trained together" in reason
    # A folder of weights counts by the content of all its files.
    (text / "config.json").write_bytes(b"2")
    changed = plan(tmp_path, *files, methods=["lora"], backbones=["vits14-minilm"], seeds=[0])
    assert ids(changed) != ids(made)


def test_the_recipe_is_preset_then_common_then_the_methods_own(tmp_path):
    def recipe(*sets, **options):
        return plan(tmp_path, *sets, seeds=[0], **options).planned[0].trial.spec.train

    assert recipe()["lr"] == 1e-3
    assert recipe("train.lr=0.5")["lr"] == 0.5
    assert recipe("train.lr=0.5", "method.lora.train.lr=0.25")["lr"] == 0.25
    mine = plugin(tmp_path, "{'matched': Preset(train={'loss': {'mask_duplicates': True}, 'epochs': 7})}")
    found = recipe("train.loss.name=multi_positive", methods=["mine"], plugins=[mine])
    assert (found["loss"]["name"], found["loss"]["mask_duplicates"], found["epochs"]) == ("multi_positive", True, 7)


def test_methods_without_the_preset_are_left_out_and_a_misspelt_preset_is_an_error(tmp_path):
    mine = plugin(tmp_path, "{'matched': Preset(), 'paper': Preset(train={'epochs': 3})}")
    bare = plugin(tmp_path, "{'matched': Preset()}", name="Bare")
    made = plan(tmp_path, methods=["mine", "bare"], plugins=[mine, bare], preset="paper", seeds=[0])
    assert [(p.trial.spec.method.name, p.trial.spec.train["epochs"]) for p in made.planned] == [("mine", 3)]
    assert made.refused == [("bare/scenes/tiny-clip", "has no preset 'paper', only matched")]
    refused("has a preset 'papre'; did you mean `paper`", tmp_path, methods=["mine"], plugins=[mine], preset="papre")


# Names and sections


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ([], {"methods": ["lorra"]}, "unknown method 'lorra'; did you mean lora"),
        ([], {"datasets": ["scens"], "dataset": None}, "`scens`: there is no such card; did you mean `scenes`"),
        ([], {"backbones": ["tiny-clp"]}, "unknown backbone tiny-clp; did you mean tiny-clip"),
        ([], {"plugins": ["nowhere.py"]}, "nowhere.py: no such file"),
        (["train.epoch=3"], {}, "key `train.epoch` is unknown; did you mean `epochs`"),
        (["train.augmentation.flp=3"], {}, "key `train.augmentation.flp` is unknown"),
        (["method.lora.rnk=3"], {}, "key `method.lora.rnk` is unknown; did you mean `rank`"),
        (["method.lora.rank=0"], {}, "key `method.lora.rank` has the value 0"),
        (["method.lora.train.lrr=3"], {}, "key `method.lora.train.lrr` is unknown; did you mean `lr`"),
        (["method.lora.train=3"], {}, "key `method.lora.train` has the value 3; expected a section"),
        (["method.lra.rank=3"], {}, "section `method.lra`: .* did you mean `lora`"),
        # Also in the section of a method that does not run this time.
        (["method.full_finetune.train.lrr=3"], {}, "key `method.full_finetune.train.lrr` is unknown"),
        (["dataset.scenes.trian=3"], {}, "key `dataset.scenes.trian` is unknown; did you mean `train`"),
        (["dataset.scenes.root=x"], {}, "key `dataset.scenes.root` is unknown"),
        (["dataset.scenes.card=x"], {}, "key `dataset.scenes.card` is unknown"),
        (["dataset.ucm.root=x"], {}, "section `dataset.ucm`: this experiment has no data set `ucm`.* list it under"),
        (["dataset.scenes.val=0"], {}, "scenes has no val split"),
        (["method.coop.depth=0"], {"methods": ["coop"]}, "key `method.coop.depth"),
        (["train.betas=[0.9, 1.0]"], {}, "key `train.betas.1` has the value 1.0"),
        (["train.clip_norm=.inf"], {}, "key `train.clip_norm` has the value inf"),
        (["method.lora.alpha=.nan"], {}, "key `method.lora.alpha` has the value nan"),
        (["dataset.ucm.root=2024"], {"datasets": ["ucm"], "dataset": None}, "`dataset.ucm.root` has the value 2024.*quote it"),
        (["method.pir_petl.prior_weights=no.pth"], {}, "key `method.pir_petl.prior_weights`: weights: no.pth was not found"),
        (["backbone.tiny-clip.weigths=x"], {}, "key `backbone.tiny-clip.weigths` is unknown; did you mean `weights`"),
        (["backbone.tiny-clip.name=x"], {}, "key `backbone.tiny-clip.name` is unknown"),
        (["backbone.tiny-clip.blocks=2"], {}, "tiny-clip has no option blocks; it takes weights"),
        (["backbone.tiny-clip.weights=x.safetensors"], {}, "x.safetensors was not found"),
        (["backbone.tinyclip.weights=x"], {}, "section `backbone.tinyclip`: .* did you mean `tiny-clip`"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_the_key_and_the_way_out(tmp_path, sets, options, message):
    refused(message, tmp_path, *sets, **options)
    assert not (tmp_path / "results").exists()


def test_mistakes_in_a_file_are_told_with_its_line(tmp_path):
    for text, line in (
        ("method:\n  lora:\n    rnk: 3\n", 3),
        ("train:\n  epochs: 3\n  epoch: 4\n", 3),
        ("method:\n  lora:\n    train:\n      lrr: 1\n", 4),
        ("method:\n  lra: {}\n", 2),
        ("dataset:\n  scenes:\n    trian: 1\n", 3),
        ("backbone:\n  tiny-clip: {weigths: x}\n", 2),
        ("backbone:\n  tiny-clip:\n    blocks: 2\n", 2),
    ):
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ExperimentError, match=rf"mine\.yaml:{line}: "):
            make_plan(load_experiment(path, methods=["lora"]))


def test_the_section_of_a_card_goes_by_its_path_or_by_its_name(tmp_path):
    card, root = small_set(tmp_path)
    by_path = plan(tmp_path, f"dataset.{card}.root={root}", datasets=[str(card)], dataset=None)
    by_name = plan(tmp_path, f"dataset.toyset.root={root}", datasets=[str(card)], dataset=None)
    assert ids(by_path) == ids(by_name) and by_name.planned[0].trial.paths.dataset_root == str(root)
    both = (f"dataset.{card}.root={root}", "dataset.toyset.blank=drop")
    refused("speak of the same data set", tmp_path, *both, datasets=[str(card)], dataset=None)


def test_a_set_without_validation_pictures_is_refused_with_the_way_out(tmp_path):
    root = precomp_set(tmp_path / "files")
    card = tmp_path / "pre.yaml"
    card.write_text(
        "name: pre\ntitle: P\nversion: 1\nlicence: n\ncitation: n\nformat: precomp\nfiles: {annotations: ., images: p}\n"
    )
    options = {"datasets": [str(card)], "dataset": {"pre": {"root": str(root)}}}
    assert len(plan(tmp_path, **options).planned) == 3
    refused("data set pre has no val split", tmp_path, "dataset.pre.val_share=0", **options)


def test_a_missing_folder_is_found_while_planning(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        plan(tmp_path, f"dataset.ucm.root={tmp_path / 'no'}", datasets=["ucm"], dataset=None)
