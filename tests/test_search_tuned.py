"""From a finished study to a tuned board: what best.yaml says, and when a run takes it or refuses."""

import re

import pytest
import yaml
from search_parts import asked_for, open_study, put_trial
from small_trials import small_plan, tiny_backbone  # noqa: F401

from petlbench.harness.experiment import ExperimentError
from petlbench.harness.record_files import read_record
from petlbench.harness.recorded import RECORDED
from petlbench.harness.search.tuned import BEST, write_best
from petlbench.harness.trial import run_trial

LORA = {"method.rank": 4, "train.lr": 2e-3}
FOUND = {"method.reduction": 4, "method.ratio": 0.6, "train.lr": 2e-3}


def search_done(results, *sets, config=FOUND, **options):
    """The folder of a study with three trials of which ``config`` is the best."""
    asked = asked_for(results, *sets, **options)
    study = open_study(results, asked)
    put_trial(study, {**config, "train.lr": 1e-3}, [50.0, 51.0, 52.0])
    put_trial(study, config, [50.0, 61.5, 60.0])
    put_trial(study, {**config, "train.lr": 1e-4}, [40.0], "pruned")
    write_best(study)
    study.close()
    return study.folder


def tuned_plan(results, *sets, methods=("clip_adapter",), seeds=None, tuned=None):
    if seeds is not None:
        sets = (*sets, f"seeds={seeds}")
    return small_plan(results, *sets, f"tuned={tuned or results / 'search'}", methods=list(methods))


def refused(message, *arguments, **options):
    with pytest.raises(ExperimentError, match=message):
        tuned_plan(*arguments, **options)


def test_best_says_what_was_found_and_everything_about_the_search(tmp_path):
    folder = search_done(tmp_path)
    best = yaml.safe_load((folder / BEST).read_text())
    assert best["config"] == FOUND
    study = best["study"]
    assert (study["val_mR"], study["epoch"], study["best_trial"], study["tried"]) == (61.5, 2, 1, 3)
    assert (study["trials"], study["samples_seen"], study["preset_val_mR"]) == ({"ok": 2, "pruned": 1}, 48 * 7, 52.0)
    assert (study["searcher"], study["scheduler"], study["seed"]) == ("optuna", "asha", 1000)
    assert folder.name.endswith(study["id"][:8])
    assert set(best["splits"]) == {"train", "val"} and best["versions"]["optuna"][0].isdigit()
    assert best["fixed"]["train.epochs"] == 3 and "train.lr" not in best["fixed"]


def test_a_run_lays_it_over_the_preset_and_the_record_says_what_was_spent(tmp_path, tiny_backbone, one_thread):  # noqa: F811
    folder = search_done(tmp_path)
    plan = tuned_plan(tmp_path)
    (planned,) = plan.planned
    spec = planned.trial.spec
    assert (spec.method.options["reduction"], spec.method.options["ratio"], spec.train["lr"]) == (4, 0.6, 2e-3)
    assert spec.train["epochs"] == 3 and plan.notes == []
    record = run_trial(planned.trial)
    assert (record.selection.budget_trials, record.selection.study[:8]) == (3, folder.name[-8:])
    assert read_record(planned.path).selection == record.selection
    assert [p.state for p in tuned_plan(tmp_path).planned] == [RECORDED]


def test_settings_recorded_with_another_budget_run_again(tmp_path, tiny_backbone, one_thread):  # noqa: F811
    """The preset may win its search; the board must still say what the search cost."""
    (untuned,) = small_plan(tmp_path, methods=["clip_adapter"]).planned
    run_trial(untuned.trial)
    options = untuned.trial.spec.method.options
    search_done(
        tmp_path, config={"method.reduction": options["reduction"], "method.ratio": options["ratio"], "train.lr": 1e-3}
    )
    (planned,) = tuned_plan(tmp_path).planned
    assert planned.path == untuned.path
    assert (planned.state, planned.note) == ("to run", "recorded with a tuning budget of 1, now 3")


def test_the_searched_seed_may_not_be_on_the_board(tmp_path):
    search_done(tmp_path)
    refused(r"seed 1000 is that of the search .*give the board other seeds", tmp_path, seeds="[0, 1000]")


def test_methods_without_a_search_are_named_and_those_with_nothing_to_search_are_not_asked_for_one(tmp_path):
    search_done(tmp_path)
    refused("no search of lora/scenes/tiny-clip in .*benchmark search lora", tmp_path, methods=["lora"])
    plan = tuned_plan(tmp_path, methods=["clip_adapter", "zero_shot"])
    assert {p.trial.spec.method.name: p.trial.tuning is not None for p in plan.planned} == {
        "clip_adapter": True,
        "zero_shot": False,
    }


def test_a_search_on_other_data_is_refused_and_other_settings_are_told(tmp_path):
    search_done(tmp_path)
    refused("searched on other data or another backbone", tmp_path, "dataset.scenes.train=60")
    plan = tuned_plan(tmp_path, "train.epochs=9")
    assert re.search(r"searched under other settings .*train.epochs 3 then, 9 now", *plan.notes)
    assert plan.planned[0].trial.spec.train["epochs"] == 9


def test_of_several_searches_the_one_under_the_same_settings_is_taken_else_a_choice_is_asked_for(tmp_path):
    search_done(tmp_path)
    other = search_done(tmp_path, "train.epochs=5", config={**FOUND, "method.reduction": 8})
    assert tuned_plan(tmp_path).planned[0].trial.spec.method.options["reduction"] == 4
    assert tuned_plan(tmp_path, "train.epochs=5").planned[0].trial.spec.method.options["reduction"] == 8
    refused("several searches of clip_adapter/scenes/tiny-clip fit", tmp_path, "train.epochs=7")
    chosen = tuned_plan(tmp_path, "train.epochs=7", tuned=other).planned[0]
    assert chosen.trial.spec.method.options["reduction"] == 8


def test_studies_that_differ_only_in_how_they_searched_are_told_apart_by_their_folders(tmp_path):
    first = search_done(tmp_path, method="lora", config=LORA)
    second = search_done(tmp_path, "search.scheduler=fifo", method="lora", config={**LORA, "train.lr": 3e-3})
    adapter = search_done(tmp_path)
    methods = ["lora", "clip_adapter"]
    refused(
        "several searches of lora/scenes/tiny-clip fit.*--tuned-from, once for every method", tmp_path, methods=methods
    )
    for folder, rate in ((first, 2e-3), (second, 3e-3)):
        made = tuned_plan(tmp_path, methods=methods, tuned=[str(folder), str(adapter)])
        assert [p.trial.spec.train["lr"] for p in made.planned] == [rate, 2e-3]
    (tmp_path / "none").mkdir()
    refused("none: no best.yaml in or below it", tmp_path, methods=methods, tuned=[str(first), str(tmp_path / "none")])


def test_a_space_that_changed_since_is_refused(tmp_path):
    search_done(tmp_path, config={"train.lr": 1e-3})
    refused("it sets train.lr, but the space of clip_adapter is now method.reduction, method.ratio, train.lr", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("val_mR: 61.5", "val_mR: high", r"best\.yaml:\d+: key `study.val_mR`"),
        ("config:", "confg:", "did you mean `config`"),
        ("schema_version: 1", "schema_version: 2", "schema_version"),
    ],
)
def test_a_damaged_file_is_refused_by_line_and_key(old, new, message, tmp_path):
    path = search_done(tmp_path) / BEST
    path.write_text(path.read_text().replace(old, new))
    refused(message, tmp_path)


def test_where_no_search_is_the_way_to_one_is_told(tmp_path):
    refused(r"no such folder; `benchmark search METHOD \.\.\.` makes one", tmp_path)
    (tmp_path / "search").mkdir()
    refused("no best.yaml in or below it; a search writes one when its budget is spent", tmp_path)


def test_a_study_without_a_score_has_no_best(tmp_path):
    study = open_study(tmp_path, asked_for(tmp_path))
    put_trial(study, FOUND, [], "failed")
    assert write_best(study) is None and not (study.folder / BEST).exists()
