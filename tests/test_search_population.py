"""Population-based training: who takes over from whom, with which weights, and that a killed search does the same again."""

import json
import random
import shutil

import pytest
from ray.tune.search import Searcher
from search_parts import asked_for, open_study, put_trial
from small_trials import Killed, random_clip, tiny_backbone  # noqa: F401

from petlbench.harness.experiment import ExperimentError
from petlbench.harness.leftovers import work_folder
from petlbench.harness.search.objective import search_trial
from petlbench.harness.search.population import Population, changed
from petlbench.harness.search.study import Study
from petlbench.harness.spec import Trial
from petlbench.methods.base import Domain

pytestmark = pytest.mark.usefixtures("one_thread", "tiny_backbone")

SETS = ("search.scheduler=pbt", "search.trials=4", "train.schedule=constant", "train.warmup=0")


def population(study, asked):
    return Population(study, asked, run="r", dress=lambda trial: trial, heard=lambda trial: None, over=lambda: False)


def drive(proposals, segments=None):
    """What Ray Tune does with one worker: a segment after the other, all or so many of them; the number trained."""
    done = 0
    while segments is None or done < segments:
        if (told := proposals.suggest(f"t{done}")) == Searcher.FINISHED:
            break
        last = {}

        def report(line, name=f"t{done}", last=last):
            last.update(line)
            proposals.on_trial_result(name, line)

        search_trial(Trial.model_validate(told["trial"]), told["run"], report, told["until"])
        proposals.on_trial_complete(f"t{done}", last)
        done += 1
    return done


def left_behind(study):
    """All that must not depend on interruptions."""
    return [
        {
            "config": trial.config,
            "taken": trial.taken,
            "curve": [(line.epoch, line.val_mR, line.loss) for line in trial.curve],
            "origin": trial.origin,
            "status": trial.status,
            "seen": trial.samples_seen,
        }
        for trial in study.trials
    ]


@pytest.fixture(scope="module")
def small_clip():
    """The backbone of every trial, for fixtures that serve several tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("petlbench.harness.parts.load_backbone", lambda name, **options: random_clip(seed=7))
        yield


@pytest.fixture(scope="module")
def whole(small_clip, tmp_path_factory):
    """A study of three members and a last trial, three epochs each, that was not interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    asked = asked_for(folder, *SETS)
    study = open_study(folder, asked)
    segments = drive(population(study, asked))
    study.close()
    return asked, study, segments


@pytest.fixture(scope="module")
def begun(small_clip, tmp_path_factory):
    """The folder of results of a study whose members have come to the first exchange."""
    folder = tmp_path_factory.mktemp("begun")
    asked = asked_for(folder, *SETS)
    study = open_study(folder, asked)
    drive(population(study, asked), 3)
    study.close()
    return folder


def again(begun, folder):
    """A copy of it to go on with."""
    shutil.copytree(begun, folder, dirs_exist_ok=True)
    asked = asked_for(folder, *SETS)
    return asked, open_study(folder, asked)


def test_the_worst_takes_over_from_the_best_with_a_changed_learning_rate(whole):
    asked, study, segments = whole
    members = study.trials[:3]
    assert segments == 3 * 3 + 1
    assert [trial.origin for trial in study.trials] == ["preset", "optuna", "optuna", "pbt"]
    assert sum(len(trial.taken) for trial in members) >= 1
    for member in members:
        for takeover in member.taken:
            better = study.trials[takeover.of]
            scores = {t.number: t.curve[takeover.epoch - 1].val_mR for t in members}
            assert scores[better.number] == max(scores.values()) > scores[member.number] == min(scores.values())
        if member.taken and not better.taken:
            for key in asked.space:
                if key != "train.lr":
                    assert member.config[key] == better.config[key], "the modules have the same sizes"
            low, high = asked.space["train.lr"].values
            wanted = [min(high, max(low, better.config["train.lr"] * factor)) for factor in (0.8, 1.25)]
            assert any(member.config["train.lr"] == pytest.approx(value) for value in wanted)


def test_every_trial_gets_the_same_budget_and_the_last_one_can_be_trained_again(whole):
    _, study, _ = whole
    assert [trial.status for trial in study.trials] == ["ok"] * 4
    assert [trial.samples_seen for trial in study.trials] == [48 * 3] * 4
    assert all([line.epoch for line in trial.curve] == [1, 2, 3] for trial in study.trials)
    changing = max((t for t in study.trials if t.taken), key=lambda t: (t.best_mR, -t.number))
    assert study.trials[3].config == changing.config and not study.trials[3].taken
    assert study.best() in [trial for trial in study.trials if not trial.taken]


def test_a_search_in_parts_is_the_same_as_a_whole_one(whole, begun, tmp_path, monkeypatch):
    asked, study = again(begun, tmp_path)

    def die(self, trial):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Study, "save", die)
        with pytest.raises(Killed):  # in the middle of an exchange: the weights lie there, and nobody knows
            population(study, asked).suggest("t3")
    study.close()
    for segments in (2, 3, None):
        study = open_study(tmp_path, asked)
        drive(population(study, asked), segments)
        study.close()
    assert left_behind(Study.read(study.folder)) == left_behind(whole[1])


def test_a_member_goes_on_with_the_weights_and_its_own_learning_rate(begun, tmp_path):
    asked, study = again(begun, tmp_path)
    told = population(study, asked).suggest("next")  # makes the exchange
    (member,) = [trial for trial in study.trials if trial.taken]
    better = study.trials[member.taken[0].of]
    place = {t.number: work_folder(asked.trial(t.config, study.work_of(t))) for t in (member, better)}
    mine, theirs = (place[t.number] / "epoch-00001" for t in (member, better))
    names = sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file())
    assert names and all((mine / name).read_bytes() == (theirs / name).read_bytes() for name in names)
    assert told["until"] == 2

    lines = []
    search_trial(asked.trial(member.config, study.work_of(member)), "r", lines.append, until=2)
    assert [line.get("paused") for line in lines if line["epoch"] == 2] == [None, 1]
    rates = [line["lr"] for line in json.loads((place[member.number] / "epoch-00002/state.json").read_text())["curve"]]
    assert rates == pytest.approx([better.config["train.lr"], member.config["train.lr"]])


def test_where_the_better_ones_checkpoint_is_damaged_a_member_goes_on_as_it_is(begun, tmp_path):
    asked, study = again(begun, tmp_path)
    for path in study.work.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:10])
    population(study, asked).suggest("next")
    assert not any(trial.taken for trial in study.trials)
    (note,) = [trial.note for trial in study.trials if trial.note]
    assert "did not take over from" in note and "checkpoint is damaged" in note


def test_a_segment_that_was_trained_already_only_pauses(tmp_path):
    """Ray starts a segment again whose worker died between its last epoch and its end."""
    trial = asked_for(tmp_path, *SETS).trial({}, str(tmp_path / ".work"))
    first, again, rest = [], [], []
    search_trial(trial, "r", first.append, until=1)
    search_trial(trial, "r", again.append, until=1)
    search_trial(trial, "r", rest.append)
    assert [line["epoch"] for line in first] == [1, 1] and first[1]["paused"] == 1
    assert [(line["epoch"], line.get("paused")) for line in again] == [(1, 1)]
    assert [line["epoch"] for line in rest] == [2, 3] and rest[-1]["finished"]


def test_members_wait_for_each_other_and_a_failed_one_is_not_waited_for(tmp_path):
    asked = asked_for(tmp_path, *SETS)
    study = open_study(tmp_path, asked)
    proposals = population(study, asked)
    told = [proposals.suggest(f"t{index}") for index in range(3)]
    assert [one["until"] for one in told] == [1, 1, 1]
    assert proposals.suggest("t3") is None, "three are under way, and the last trial waits for their end"
    failed = {"failed": 1, "epoch": 0, "best_mR": 0.0, "error_type": "E", "error_message": "m", "error_traceback": ""}
    proposals.on_trial_result("t0", failed)
    assert study.trials[0].status == "failed" and proposals.suggest("t3") is None


@pytest.mark.parametrize("at_once", [1, 6])
def test_a_space_with_fewer_points_than_members_makes_a_smaller_population(tmp_path, at_once):
    """Five points of a grid, the preset among them, where seven members were asked for; cut short, and gone on with."""
    sets = ("search.scheduler=pbt", "search.trials=8", "search.searcher=grid")
    asked = asked_for(tmp_path, *sets, method="full_finetune")
    for begun in (3, 8, None):
        study = open_study(tmp_path, asked)
        pass_time(population(study, asked), study, begun, at_once)
        study.close()
    members = [trial for trial in study.trials if trial.origin != "pbt"]
    assert len(members) == 5 and len(study.trials) <= 6
    assert {trial.status for trial in study.trials} == {"ok"}
    assert all(trial.last_epoch == 3 for trial in study.trials)


def pass_time(proposals, study, begun, at_once):
    """Segments that train nothing, so many at once, until so many were begun or all is done."""
    running, names = {}, iter(range(1000))
    while begun is None or next(names) < begun:
        while len(running) < at_once and isinstance(told := proposals.suggest(f"t{(name := next(names))}"), dict):
            running[f"t{name}"] = told
        if not running:
            assert told == Searcher.FINISHED, "nothing runs, and nothing is begun"
            return
        name, told = running.popitem()
        trial = study.trials[told["number"]]
        until = told["until"] or trial.epochs
        for epoch in range(trial.last_epoch + 1, until + 1):
            score = 10.0 * epoch + told["number"]
            line = {"epoch": epoch, "loss": 1.0, "val_mR": score, "best_mR": score, "pairs": 48 * epoch, "train_s": 1.0}
            proposals.on_trial_result(name, line)
        last = {**line, "paused": 1} if told["until"] else {**line, "finished": 1}
        proposals.on_trial_result(name, last)


def test_only_real_numbers_of_the_recipe_change_and_stay_within_their_ends():
    space = {
        "method.rank": Domain("choice", (2, 4)),
        "method.scale": Domain("uniform", (0.0, 1.0)),
        "train.lr": Domain("loguniform", (1e-4, 1e-3)),
        "train.batch_size": Domain("choice", (16, 32)),
    }
    config = {"method.rank": 2, "method.scale": 0.5, "train.lr": 9e-4, "train.batch_size": 16}
    drawn = {changed(config, space, random.Random(seed))["train.lr"] for seed in range(20)}
    assert drawn == {7.2e-4, 1e-3}
    outside = {**config, "train.lr": 5e-5}  # a preset's
    drawn = {changed(outside, space, random.Random(seed))["train.lr"] for seed in range(20)}
    assert drawn == {5e-5, 6.25e-5}
    assert {**changed(config, space, random.Random(0)), "train.lr": 9e-4} == config


def test_what_a_population_needs_is_told(tmp_path):
    for sets, found in ((["search.time=1h"], "only a time"), (["search.trials=3"], "found 3")):
        with pytest.raises(ExperimentError, match=rf"key `search`.*expected trials of at least 4 .*{found}"):
            asked_for(tmp_path, "search.scheduler=pbt", *sets)
    settings = asked_for(tmp_path, *SETS, "train.epochs=10", "protocol.validate_every=3").question.settings
    assert settings == {"population": 4, "interval": 3}, "a quarter of the epochs, validated ones"
    assert asked_for(tmp_path, *SETS, "search.interval=5").question.settings["interval"] == 5


def test_a_space_with_the_number_of_epochs_has_no_population(tmp_path, monkeypatch):
    cls = asked_for(tmp_path, *SETS).cls
    monkeypatch.setattr(cls, "space", {**cls.space, "train.epochs": Domain("choice", (2, 4))})
    with pytest.raises(ExperimentError, match=r"searches train\.epochs.*trained equally long; use asha"):
        asked_for(tmp_path, *SETS)


def test_a_trial_that_took_over_is_never_the_best(tmp_path):
    study = open_study(tmp_path, asked_for(tmp_path, *SETS))
    put_trial(study, {"train.lr": 1e-3}, [50.0])
    put_trial(study, {"train.lr": 2e-3}, [70.0], taken=[{"epoch": 1, "of": 0, "config": {"train.lr": 3e-3}}])
    assert study.best().number == 0
    assert study.trials[1].tried == [{"train.lr": 3e-3}, {"train.lr": 2e-3}]
