"""Tables and pictures of a study, from trials of every status."""

import csv
import re

import pytest
import yaml
from search_parts import asked_for, open_study, put_trial

from petlbench.harness.record import ErrorPart
from petlbench.harness.search.plots import MIN_FOR_IMPORTANCE, importance
from petlbench.harness.search.report import publish_study
from petlbench.harness.search.run import Searched
from petlbench.methods.base import Domain


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Fourteen trials whose score depends on the learning rate alone, and one that failed; interrupted once."""
    tmp_path = tmp_path_factory.mktemp("report")
    found = open_study(tmp_path, asked_for(tmp_path))
    for index in range(14):
        lr = 1e-4 * 1.25**index
        config = {"method.reduction": (1, 2, 4, 8)[index % 4], "method.ratio": (0.2, 0.4)[index % 2], "train.lr": lr}
        scores = [30.0 + index, 31.0 + index, 30.5 + index]
        put_trial(found, config, scores[:1] if index == 3 else scores, "pruned" if index == 3 else "ok")
    error = ErrorPart(type="TrainingError", message="a | b\nsecond line", traceback="")
    put_trial(found, {"method.reduction": 1, "method.ratio": 0.8, "train.lr": 3e-3}, [], "failed", error=error)
    publish_study(Searched(found, complete=False))
    return found


def test_the_tables_hold_every_trial_and_the_best_one_first(study):
    rows = list(csv.DictReader((study.folder / "trials.csv").open()))
    assert [row["trial"] for row in rows] == [str(n) for n in range(15)]
    assert float(rows[2]["train.lr"]) == study.trials[2].config["train.lr"], "not rounded"
    assert (rows[3]["status"], rows[3]["epochs"], rows[3]["samples_seen"]) == ("pruned", "1/3", "48")
    assert rows[14]["note"] == "TrainingError: a | b\nsecond line" and rows[14]["val_mR"] == ""
    text = (study.folder / "trials.md").read_text()
    table = [row for row in text.splitlines() if row.startswith("|")]
    assert table[2].split("|")[1].strip() == "**13**" and "44.00" in table[2]
    assert "15 configurations" in text and "TrainingError: a \\| b" in table[-1]


def test_only_a_finished_study_has_a_best_configuration_and_the_pictures_are_the_same_bytes_each_time(study):
    drawn = {path: path.read_bytes() for path in study.folder.iterdir() if path.suffix in (".svg", ".png")}
    assert {path.stem for path in drawn} == {"history", "slices", "importance"} and len(drawn) == 6
    assert not (study.folder / "best.yaml").exists()
    assert study.folder / "best.yaml" in publish_study(Searched(study, complete=True))
    assert drawn == {path: path.read_bytes() for path in drawn}
    slices = (study.folder / "slices.svg").read_text()
    assert len(re.findall(r'<g id="axes_\d+">', slices)) == 3, "a panel per setting"


def test_what_decides_the_score_is_the_important_setting(study):
    domains = {key: Domain(d["kind"], tuple(d["values"])) for key, d in study.about.question.space.items()}
    scored = [trial for trial in study.trials if trial.best_mR is not None]
    weights = importance(scored, domains)
    assert max(weights, key=weights.get) == "train.lr" and sum(weights.values()) == pytest.approx(1)
    assert importance(scored[: MIN_FOR_IMPORTANCE - 1], domains) == {}
    assert importance(scored, {"train.lr": domains["train.lr"]}) == {}, "with one setting there is nothing to compare"


def test_a_study_without_scores_has_a_table_and_no_pictures(tmp_path):
    found = open_study(tmp_path, asked_for(tmp_path))
    put_trial(found, {}, [], "failed", error=ErrorPart(type="E", message="no", traceback=""))
    assert {path.name for path in publish_study(Searched(found, complete=True))} == {"trials.csv", "trials.md"}


@pytest.mark.parametrize(("selection", "epoch"), [("best_val", 1), ("last", 3)])
def test_of_epochs_that_score_alike_the_one_that_selection_keeps_is_named(selection, epoch, tmp_path):
    found = open_study(tmp_path, asked_for(tmp_path, f"protocol.selection={selection}"))
    put_trial(found, {"method.reduction": 1, "method.ratio": 0.2, "train.lr": 1e-3}, [60.0, 50.0, 60.0])
    publish_study(Searched(found, complete=True))
    assert yaml.safe_load((found.folder / "best.yaml").read_text())["study"]["epoch"] == epoch
    (row,) = csv.DictReader((found.folder / "trials.csv").open())
    assert row["epoch"] == str(epoch)


def test_a_further_note_leaves_the_earlier_one(tmp_path):
    trial = put_trial(open_study(tmp_path, asked_for(tmp_path)), {}, [50.0], note="did not take over")
    trial.add_notes("stopped when the time was up")
    assert trial.note == "did not take over; stopped when the time was up"
