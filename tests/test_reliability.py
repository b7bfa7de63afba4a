"""What befalls runs in the night: losses that become NaN, clocks that jump, and the page that says what is tested."""

import os
import re
import time

import pytest
from small_trials import a_trial, same, tiny_backbone  # noqa: F401 (a fixture)
from support import ROOT

from petlbench.harness.engine import TrainingError
from petlbench.harness.leftovers import work_folder
from petlbench.harness.record_files import path_of, read_record
from petlbench.harness.trial import run_trial
from petlbench.methods.full_finetune import FullFinetune

pytestmark = pytest.mark.usefixtures("tiny_backbone", "one_cache")


def test_a_loss_that_becomes_nan_fails_the_trial_with_advice(tmp_path, monkeypatch):
    trial = a_trial(tmp_path)

    def spoil(line):
        compare = FullFinetune.compare
        nan = float("nan")
        monkeypatch.setattr(
            FullFinetune, "compare", lambda *args: {name: value * nan for name, value in compare(*args).items()}
        )

    with pytest.raises(TrainingError, match=r"not finite at step 4 .*lower train\.lr"):
        run_trial(trial, spoil)
    record = read_record(path_of(trial))
    assert (record.status, record.error.type) == ("failed", "TrainingError") and not record.metrics
    assert [p.name for p in work_folder(trial).glob("epoch-*")] == ["epoch-00001"]


def test_no_decision_and_no_duration_depends_on_the_clock(tmp_path, undisturbed, monkeypatch):
    real, trial, decade = time.time, a_trial(tmp_path), 10 * 365 * 86400
    jumps = iter([decade, -decade, 2 * decade])

    def jump(line):
        ahead = next(jumps)
        monkeypatch.setattr(time, "time", lambda: real() + ahead)

    record = run_trial(trial, jump)
    monkeypatch.setattr(time, "time", real)
    assert same(record, undisturbed)
    assert 0 < record.cost.train_s < 600 and 0 < record.cost.eval_s < 600
    # A record from the future is replaced where that is asked for, and taken where another process has just written it.
    ahead = real() + decade
    os.utime(path_of(trial), (ahead, ahead))
    first = path_of(trial).stat().st_ino
    epochs = []
    run_trial(trial, lambda line: epochs.append(line["epoch"]))
    assert epochs == [1, 2, 3] and path_of(trial).stat().st_ino != first
    os.utime(path_of(trial), (1, 1))
    assert same(run_trial(trial, lambda line: epochs.append("again"), seen=None), undisturbed)
    assert "again" not in epochs


def test_every_test_that_the_page_names_exists():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.split("## ")[0].splitlines() if line.startswith("| ")][2:]
    named = [re.findall(r"`(test_\w+\.py)::(test_\w+)`", row) for row in rows]
    assert len(rows) > 12 and all(named)
    for file, test in {pair for row in named for pair in row}:
        assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{test}"
