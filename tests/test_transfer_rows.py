"""Transfers: trained on one set, tested on another without near duplicates; rows of tables of their own."""

import errno
import json
import shutil
from pathlib import Path

import jsonschema
import pytest
from cli_calls import call
from data_files import write_picture
from small_trials import small_trial
from support import ROOT

from petlbench.harness.gallery_data import open_split
from petlbench.harness.metrics import Ranks, recalls
from petlbench.harness.record_files import find_records, read_record
from petlbench.harness.retrial import Places
from petlbench.harness.transfer_record import TargetPart, find_transfers, identity, read_transfer
from petlbench.harness.trial import run_trial
from petlbench.leaderboard.board import write_board
from petlbench.leaderboard.explain import is_toy
from petlbench.leaderboard.results_validate import validate
from petlbench.leaderboard.table import build_board
from petlbench.leaderboard.transfer import load_transfers

pytestmark = pytest.mark.usefixtures("small_world")
TEST_PICTURES = 6


@pytest.fixture(scope="module")
def trained(small_world, tmp_path_factory):
    """Two seeds of one method, trained on scenes."""
    folder = tmp_path_factory.mktemp("trained") / "results"
    trial = small_trial(folder, "train.epochs=1", "train.lr=0.01", method="linear_probe")
    for seed in (0, 1):
        run_trial(trial.model_copy(update={"spec": trial.spec.model_copy(update={"seed": seed})}))
    return folder


@pytest.fixture(scope="module")
def target(trained, tmp_path_factory):
    """A set of one's own whose test split holds a copy of a training picture, stored anew and turned, and its caption."""
    folder = tmp_path_factory.mktemp("target")
    record = next(find_records(trained))
    train = open_split(read_record(record), record, Places(), "train")
    items = []
    for index in range(TEST_PICTURES + 1):
        name, split = f"{index}.jpg", "test" if index < TEST_PICTURES else "train"
        write_picture(folder / "files" / "pictures" / name, seed=40 + index)
        captions = [f"number {index} seen from {place}" for place in ("above", "afar")]
        if index == 0:
            copy = train.images[0].open().rotate(90).resize((180, 180))
            copy.save(folder / "files" / "pictures" / name, quality=80)
        if index == 1:
            captions[0] = f" {train.captions[0].upper()}"
        items.append({"filename": name, "split": split, "sentences": [{"raw": caption} for caption in captions]})
    (folder / "files" / "set.json").write_text(json.dumps({"images": items}), encoding="utf-8")
    card = folder / "west.yaml"
    card.write_text(
        "name: west\ntitle: A <b>western</b> set\nversion: 1\nlicence: none\ncitation: none\nformat: karpathy\n"
        "files: {annotations: set.json, images: pictures}\n",
        encoding="utf-8",
    )
    return card


@pytest.fixture(scope="module")
def transferred(trained, target, tmp_path_factory):
    results = shutil.copytree(trained, tmp_path_factory.mktemp("transferred") / "results")
    called = call("transfer", *find_records(results), "--to", target, "--root", target.parent / "files", "--json")
    assert called.code == 0, called
    return results, called.json


@pytest.fixture
def results(transferred, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(transferred[0], tmp_path / "results")


def test_near_duplicates_are_left_out_and_told(transferred, target):
    results, rows = transferred
    assert [row["left_out"] for row in rows] == [1, 1] and [row["shared_captions"] for row in rows] == [1, 1]
    for path, row in zip(find_transfers(results), sorted(rows, key=lambda row: row["transfer"]), strict=True):
        transfer = read_transfer(path)
        (out,) = transfer.target.left_out
        assert path == Path(row["transfer"]) and (out.image, out.split) == ("0.jpg", "train") and out.correlation > 0.9
        assert transfer.target.whole.images == TEST_PICTURES == transfer.target.test.images + 1
        assert transfer.target.test.captions == 2 * (TEST_PICTURES - 1)
        ranks = Ranks.load(path.with_name(transfer.artifacts["ranks"]))
        assert recalls(ranks) == transfer.metrics.recalls == row["recalls"]
        assert transfer.transfer_id == identity(transfer.source.spec_id, transfer.target)
        assert transfer.source.data.name == "scenes" and transfer.source.curve == []


def test_a_transfer_is_deterministic(transferred, results, target):
    (first, *_) = find_transfers(results)
    before = read_transfer(first)
    ranks = first.with_name(before.artifacts["ranks"]).read_bytes()
    record = next(path for path in find_records(results) if read_record(path).spec_id == before.source.spec_id)
    assert call("transfer", record, "--to", target, "--root", target.parent / "files").code == 0
    again = read_transfer(first)
    same = {"provenance"}
    assert again.model_dump(exclude=same) == before.model_dump(exclude=same)
    assert len(list(find_transfers(results))) == 2 and first.with_name(again.artifacts["ranks"]).read_bytes() == ranks


def test_the_board_gives_transfers_a_table_of_their_own(results):
    board = build_board(results)
    titles = {table.title: table for table in board.tables}
    assert len(board.tables) == 2 and not board.problems
    (moved,) = (table for title, table in titles.items() if "scenes → west" in title)
    (row,) = moved.rows
    assert row.group.seeds == (0, 1) and row.n == 2
    expected = [read_transfer(path).metrics.recalls["mR"] for path in find_transfers(results)]
    assert row.mean["mR"] == pytest.approx(sum(expected) / 2)
    data = dict(moved.facts)["Data set"]
    assert "trained on Synthetic scenes, tested on A <b>western</b> set without 1 near-duplicate picture" in data
    assert "1 test caption is in the training captions too" in data
    (usual,) = (table for title, table in titles.items() if "→" not in title)
    assert all("transfer/" not in entry.name for row in usual.rows for entry in row.group.entries)


def test_every_form_of_the_board_takes_them(results, tmp_path):
    paths = write_board(results, tmp_path / "board", formats=["md", "csv", "html", "tex", "json"])
    for path in paths:
        assert "west" in path.read_text(encoding="utf-8"), path
    page = next(path for path in paths if path.suffix == ".html").read_text(encoding="utf-8")
    assert "<b>western</b>" not in page and "&lt;b&gt;western&lt;/b&gt;" in page


def test_a_results_folder_with_transfers_validates(results):
    assert [p for p in validate(results).problems if "transfer" in p.name] == []
    (first, *_) = find_transfers(results)
    payload = json.loads(first.read_text())
    stated = payload["metrics"]["recalls"]
    stated.update({metric: (99 * value) / 100 for metric, value in stated.items()})
    payload["metrics"]["other_rules"]["optimistic"]["mR"] = 1.0
    first.write_text(json.dumps(payload))
    told = [p.message for p in validate(results).problems if "transfer" in p.name]
    assert any("the ranks give mR" in message for message in told)
    assert any("other_rules.optimistic.mR` of the record says 1.0" in message for message in told)
    first.unlink()
    (stray,) = (p for p in validate(results).problems if "transfer" in p.name)
    assert stray.name.endswith(".ranks.npz") and "belongs to no transfer" in stray.message


def test_one_trial_transferred_by_two_rules_is_one_seed(results):
    """A later version may take other pictures for near duplicates, and yet leave the same ones out."""
    (first, *_) = find_transfers(results)
    payload = json.loads(first.read_text())
    payload["target"]["rule"]["distance"] += 1
    payload["transfer_id"] = identity(payload["source"]["spec_id"], TargetPart.model_validate(payload["target"]))
    again = first.with_name(f"{first.stem[:-8]}{payload['transfer_id'][:8]}.json")
    payload["artifacts"]["ranks"] = f"{again.stem}.ranks.npz"
    shutil.copy(first.with_name(f"{first.stem}.ranks.npz"), again.with_name(payload["artifacts"]["ranks"]))
    again.write_text(json.dumps(payload))
    board = build_board(results)
    assert {row.n for table in board.tables for row in table.rows} == {2} and len(board.problems) == 1
    (problem,) = validate(results).problems
    assert "same trial, seed and test pictures as" in problem.message and "keep one of the two" in problem.message


def test_costs_of_evaluation_stay_with_the_set_that_was_evaluated(results):
    for path, entry in zip(find_transfers(results), load_transfers(results).entries, strict=True):
        source, shown = read_transfer(path).source.cost, entry.record.cost
        assert source.eval_s > 0 and source.query is not None
        assert shown.eval_s is None and shown.query is None and shown.train_s == source.train_s
    rows = {table.setting.dataset: table.rows[0] for table in build_board(results).tables}
    assert rows["scenes → west"].eval_s is None


def test_a_transfer_from_or_to_the_toy_set_is_a_toy():
    assert is_toy("ucm → scenes", ["vits14-minilm"]) and is_toy("scenes → ucm", ["vits14-minilm"])
    assert not is_toy("rsicd → ucm", ["vits14-minilm"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: p.update(transfer_version=9), "`transfer_version` is 9"),
        (lambda p: p["target"]["test"].update(sha256="0" * 64), "was edited"),
        (lambda p: p.pop("metrics"), "`metrics`"),
        (lambda p: p["source"].update(wrong=1), "`source.wrong`"),
        (lambda p: p["source"].update(data=None), "`data` is null"),
        (lambda p: p["metrics"]["recalls"].pop("mR"), "`metrics.test.recalls.mR` is missing"),
        (lambda p: p["metrics"]["recalls"].update(mR=1.0), "the mean of the six recalls"),
        (lambda p: p["source"]["spec"]["train"].update(lr=123.0), "`spec` hashes to"),
        (lambda p: p["source"]["spec"].pop("seed"), "`spec.seed` is missing"),
        (lambda p: p["source"].update(status="stopped"), "`source.status` is 'stopped'"),
    ],
)
def test_damaged_transfers_are_named_and_left_out(results, edit, message):
    (first, *_) = find_transfers(results)
    payload = json.loads(first.read_text())
    edit(payload)
    first.write_text(json.dumps(payload))
    loaded = load_transfers(results)
    assert (
        len(loaded.entries) == 1 and message in loaded.problems[0].message and str(first) in loaded.problems[0].message
    )
    assert len(build_board(results).tables) == 2  # the other seed still has its row


def test_an_unknown_tie_rule_of_a_transfer_is_told(results):
    (first, *_) = find_transfers(results)
    payload = json.loads(first.read_text())
    payload["metrics"]["tie_rule"] = "luck"
    first.write_text(json.dumps(payload))
    (problem,) = (p for p in validate(results).problems if "transfer" in p.name)
    assert str(first) in problem.message and "unknown tie rule 'luck'" in problem.message


def test_a_copy_of_a_transfer_is_a_problem(results):
    (first, *_) = find_transfers(results)
    shutil.copy(first, first.with_name(f"z{first.name}"))
    loaded = load_transfers(results)
    assert len(loaded.entries) == 2 and "same transfer as" in loaded.problems[0].message


def test_the_schema_accepts_transfers_and_refuses_broken_ones(results):
    schema = json.loads((ROOT / "results" / "schema" / "transfer.v1.json").read_text())
    for path in find_transfers(results):
        payload = json.loads(path.read_text())
        jsonschema.validate(payload, schema)
        del payload["target"]["test"]
        with pytest.raises(jsonschema.ValidationError, match="'test' is a required property"):
            jsonschema.validate(payload, schema)


def test_a_full_disk_is_told(results, target, monkeypatch):
    def full(path, payload):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("petlbench.harness.json_files.write_atomically", full)
    called = call("transfer", next(find_records(results)), "--to", target, "--root", target.parent / "files")
    assert "the ranks cannot be written" in called.error


def test_a_transfer_to_its_own_set_is_refused(results):
    record = next(find_records(results))
    assert "was trained on scenes itself" in call("transfer", record, "--to", "scenes").error


def test_a_record_outside_of_a_results_folder_needs_one_to_be_named(results, target, tmp_path):
    record = next(find_records(results))
    alone = shutil.copytree(record.parent, tmp_path / "kept") / record.name
    error = call("transfer", alone, "--to", target, "--root", target.parent / "files").error
    assert str(alone) in error and "--results" in error
    assert [path for path in tmp_path.rglob("transfer") if path.parent != results] == []


def test_a_set_without_test_pictures_is_refused(results, target, tmp_path):
    root = shutil.copytree(target.parent / "files", tmp_path / "files")
    payload = json.loads((root / "set.json").read_text())
    for item in payload["images"]:
        item["split"] = "train"
    (root / "set.json").write_text(json.dumps(payload))
    error = call("transfer", next(find_records(results)), "--to", target, "--root", root).error
    assert "no test split" in error
