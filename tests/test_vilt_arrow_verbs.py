"""ViLT-style .arrow files in use: the picture cache, the doctor, cards, and the verbs of the command line."""

import io
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import yaml
from arrow_files import CARD, STEM, json_of, other_container, picture, put_set, read, row, rows_of_json, same_data
from cli_calls import call, small_set
from data_files import karpathy_set
from PIL import Image
from support import refused

from petlbench.datasets.cache import prepare
from petlbench.datasets.doctor import examine, lenient
from petlbench.datasets.load import load
from petlbench.datasets.preprocess import prepare_picture
from petlbench.datasets.registry import load_card
from petlbench.datasets.writers.vilt_arrow import write_vilt_arrow
from petlbench.harness.experiment import load_experiment
from petlbench.harness.plan import make_plan


def test_the_picture_cache_works_from_several_processes(tmp_path):
    put_set(tmp_path, train=[row(n) for n in range(40, 80)])
    split = read(tmp_path)["train"]
    assert len(pickle.dumps(split.images[0])) < 1000, "a reference, not the picture"
    cache = tmp_path / "cache"
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        made = [pool.submit(prepare, split, 16, cache) for _ in range(2)]
        arrays = [future.result().array for future in made]
    here = prepare(split, 16, cache)
    assert not here.fresh and all(np.array_equal(array, here.array) for array in arrays)
    assert np.array_equal(here.array[7], prepare_picture(Image.open(io.BytesIO(picture(47))), 16))
    (tmp_path / f"{STEM}_train.arrow").touch()
    assert prepare(read(tmp_path)["train"], 16, cache).folder == here.folder, "known by content"
    put_set(tmp_path, train=[row(n) for n in range(41, 81)])
    assert prepare(read(tmp_path)["train"], 16, cache).folder != here.folder


def test_the_doctor_tells_repeats_and_joined_splits(tmp_path):
    put_set(tmp_path, train=[row(0, ["x", "y", "x"]), row(1, ["y"])])
    card_file = tmp_path / "mine.yaml"
    options = "options: {captions: distinct, parts: {train: [train, val]}}\n"
    card_file.write_text(CARD + "expected: {train: {images: 4, captions: 7}}\n" + options)
    card = load_card(card_file)
    assert len(load(card, tmp_path)["train"].captions) == 7
    report = examine(load(card, tmp_path, **lenient(card)), card)
    found = {finding.code: finding for finding in report.findings}
    assert report.splits["train"].captions == 8 and report.splits["train"].repeated_captions == 1
    assert "1 caption in all" in found["D011"].message and "leaves the repeats out" in found["D011"].advice
    assert found["D007"].severity == "warning" and "parts" in found["D007"].advice
    assert "D003" not in found and report.ok, report.findings


def test_a_card_of_these_files(tmp_path, monkeypatch):
    card = tmp_path / "mine.yaml"
    card.write_text(CARD + "options: {stam: x}\n")
    refused(lambda: load_card(card), "mine.yaml:8: key `options.stam` is unknown; did you mean `stem`?")
    card.write_text(CARD.replace("{annotations: .}", "{annotations: ., images: pics}"))
    refused(lambda: load_card(card), "vilt-arrow needs no `files.images`")
    card.write_text(CARD.replace("vilt-arrow", "karpathy"))
    refused(lambda: load_card(card), "karpathy needs `files.images`")
    card.write_text(CARD)
    monkeypatch.delenv("PETLBENCH_DATA", raising=False)
    refused(lambda: load(card), "STEM_{train,val,test}.arrow", "options annotations, stem, pattern, parts")
    put_set(tmp_path, **rows_of_json())
    json_of(tmp_path)
    assert len(load(card, tmp_path, karpathy_json="dataset.json")) == 3
    refused(lambda: load(card, tmp_path, karpathy_json="no.json"), str(tmp_path / "no.json"))
    refused(lambda: load(card, tmp_path, parts={"val": ["test"]}), "key `parts`", "nothing else may read the test")


def test_export_through_the_command_line(tmp_path):
    card, root = small_set(tmp_path)
    out = tmp_path / "arrow"
    export = ("data", "export", card, "--root", root, "--out", out, "--format", "vilt-arrow", "--stem", STEM)
    called = call(*export)
    assert called.code == 0, called
    assert f"train: 8 pictures, 16 captions in {out / STEM}_train.arrow" in called.out
    written = out / f"{STEM}.yaml"
    assert called.out.endswith(f"Read them by: -d {written}\n")
    assert yaml.safe_load(written.read_text())["name"] == "toyset-arrow"
    assert call("data", "doctor", written).code == 0, "the card knows its folder"
    for split, source in load(card, root).items():
        same_data(load(written, out)[split], source)
    assert "there already" in call(*export).error
    assert call(*export, "--force").code == 0
    (root / "pictures" / "park_0.jpg").unlink()
    assert "park_0.jpg: picture not found" in call(*export, "--force").error
    assert len(list(out.iterdir())) == 4


def test_bad_files_through_the_command_line(tmp_path):
    card = tmp_path / "mine.yaml"
    card.write_text(CARD)
    put_set(tmp_path, train=[row(0, split="test"), row(1)])
    doctor = ("data", "doctor", card, "--root", tmp_path, "--json")
    assert "says split 'test'" in call(*doctor).error
    assert call(*doctor, "--set", "split_column=ignore").json["splits"]["train"]["images"] == 2
    assert "did you mean `split_column`?" in call(*doctor, "--set", "split_colum=ignore").error
    put_set(tmp_path)
    other_container(tmp_path / f"{STEM}_val.arrow", "stream")
    assert "an Arrow IPC stream" in call(*doctor).error
    (tmp_path / f"{STEM}_val.arrow").unlink()
    assert f"{STEM}_val.arrow: not found" in call(*doctor).error
    assert "no such card" in call("data", "export", "nosuch", "--out", tmp_path / "out").error
    assert call("data", "export", "scenes", "--out", tmp_path / "out", "--format", "coco").code == 2
    assert not (tmp_path / "out").exists()


def test_a_trial_is_planned_on_these_files(tmp_path):
    source, root = small_set(tmp_path)
    out = tmp_path / "arrow"
    assert call("data", "export", source, "--root", root, "--out", out, "--stem", STEM).code == 0
    card = out / f"{STEM}.yaml"
    places = {"root": str(out), "karpathy_json": str(root / "set.json")}
    of_set = {"datasets": [str(card)], "dataset": {str(card): places}, "results": str(tmp_path / "results")}
    (planned,) = make_plan(load_experiment(None, [], methods=["zero_shot"], **of_set)).planned
    options = planned.trial.spec.dataset.options
    assert (options["karpathy_json"], options["captions"]) == ("set.json", "all")
    assert str(tmp_path) not in planned.trial.spec.model_dump_json(), "what a trial is does not depend on folders"


def test_the_karpathy_set_and_its_export_are_one(tmp_path):
    karpathy_set(tmp_path)
    card = tmp_path / "k.yaml"
    text = CARD.replace("vilt-arrow", "karpathy").replace("{annotations: .}", "{annotations: set.json, images: images}")
    card.write_text(text)
    splits = load(card, tmp_path)
    paths = write_vilt_arrow(splits, tmp_path / "out", load_card(card))
    back = load(paths[-1], tmp_path / "out", karpathy_json=str(tmp_path / "set.json"))
    assert list(back) == ["train", "test"]
    for name, split in splits.items():
        same_data(back[name], split)
