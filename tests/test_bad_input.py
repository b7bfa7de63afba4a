"""What a user gets wrong, through the real command line: a clear message, a failing exit code, nothing half-written."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from cli_calls import SMALL_SCENES, call, small_set, use_set
from data_files import precomp_set
from factories import put_record, three
from safetensors.torch import save_file

from petlbench.errors import PetlbenchError
from petlbench.harness.experiment import load_experiment
from petlbench.harness.plan import make_plan
from petlbench.harness.record_files import read_record
from petlbench.harness.trial import run_trial

ONE_EPOCH = ("train.epochs=1", "train.batch_size=4")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path / "cache"))


def files_in(folder: Path) -> set[str]:
    """What lies below a folder, locks aside."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")
    return {p.relative_to(folder).as_posix() for p in found}


def failing_trial(tmp_path: Path, *sets: str, **options) -> str:
    """Run a trial that must fail; its message, after checking that a failed record is all that it leaves."""
    results = tmp_path / "results"
    experiment = load_experiment(
        None, [*ONE_EPOCH, *sets], methods=["lora"], seeds=[0], results=str(results), **options
    )
    (planned,) = make_plan(experiment).planned
    with pytest.raises(PetlbenchError) as caught:
        run_trial(planned.trial)
    record = read_record(planned.path)
    assert record.status == "failed" and record.error is not None and record.error.message == str(caught.value)
    assert not record.metrics
    assert files_in(results) == {planned.path.relative_to(results).as_posix()}
    shown = call("ls", "results", "--results", results, "--json").json
    assert [(row["status"], row["error"]) for row in shown] == [("failed", str(caught.value))]
    return str(caught.value)


def of_set(card: Path, root: Path) -> dict:
    return {"datasets": [str(card)], "dataset": {str(card): {"root": str(root)}}}


def change_item(root: Path, index: int, change) -> None:
    path = root / "set.json"
    data = json.loads(path.read_text())
    change(data["images"][index])
    path.write_text(json.dumps(data))


# Pictures


def test_the_small_set_is_good_until_it_is_broken(tmp_path):
    card, root = small_set(tmp_path)
    (planned,) = make_plan(
        load_experiment(
            None,
            ONE_EPOCH,
            methods=["zero_shot"],
            results=str(tmp_path / "results"),
            **of_set(card, root),
        )
    ).planned
    assert run_trial(planned.trial).status == "ok"
    assert call("data", "doctor", card, "--root", root).code == 0


@pytest.mark.parametrize("name", ["park_4.jpg", "port_9.jpg", "port_11.jpg"])
def test_a_missing_picture_of_any_split_is_named_before_anything_runs(tmp_path, name):
    card, root = small_set(tmp_path)
    (root / "pictures" / name).unlink()
    error = call("run", "lora", *use_set(card, root), "--results", tmp_path / "results").error
    assert error.startswith(f"{root / 'pictures' / name}: picture not found") and "--set dataset.NAME.root" in error
    assert not (tmp_path / "results").exists()
    assert call("plan", "lora", *use_set(card, root)).code == 0  # a plan needs no pictures
    for verb in ("prepare", "doctor"):
        called = call("data", verb, card, "--root", root)
        assert called.code != 0 and name in called.out + called.err


def test_a_picture_that_vanishes_later_fails_the_trial(tmp_path):
    card, root = small_set(tmp_path)
    (root / "pictures" / "park_4.jpg").unlink()
    message = failing_trial(tmp_path, **of_set(card, root))
    assert f"{root / 'pictures' / 'park_4.jpg'}: picture not found" in message


def test_a_board_is_printed_without_pictures_when_all_is_recorded(tmp_path):
    card, root = small_set(tmp_path)
    experiment = load_experiment(None, methods=["zero_shot"], results=str(tmp_path / "results"), **of_set(card, root))
    (planned,) = make_plan(experiment).planned
    run_trial(planned.trial)
    for picture in (root / "pictures").iterdir():
        picture.unlink()
    called = call("run", "zero_shot", *use_set(card, root), "--results", tmp_path / "results")
    assert called.code == 0 and "1 of 1 trials are recorded already" in called.out


def test_a_truncated_picture_is_named_and_never_half_grey(tmp_path):
    card, root = small_set(tmp_path)
    picture = root / "pictures" / "port_3.jpg"
    picture.write_bytes(picture.read_bytes()[:-60])
    called = call("data", "prepare", card, "--root", root)
    assert str(picture) in called.error and "cannot be decoded" in called.error
    assert "port_3.jpg" in call("data", "doctor", card, "--root", root).out
    message = failing_trial(tmp_path, **of_set(card, root))
    assert str(picture) in message and "cannot be decoded" in message


# Annotations: found while planning, so that `run` writes nothing


def refused_run(tmp_path: Path, *arguments: str | Path) -> str:
    """`plan` and `run` fail with the same message, and leave no folder of results."""
    results = tmp_path / "results"
    planned = call("plan", "lora", "--results", results, *arguments)
    ran = call("run", "lora", "--results", results, *arguments)
    assert planned.error == ran.error and planned.out == ran.out == ""
    assert not results.exists()
    return ran.error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda item: item.pop("split"),
            "images[3] (port_3.jpg): key `split` is missing; expected one of train, val, test",
        ),
        (lambda item: item.update(split="tset"), "key `split` is 'tset'; did you mean `test`"),
        (lambda item: item["sentences"][1].update(raw=" \t"), "images[3] (port_3.jpg): sentences[1] is blank"),
        (lambda item: item.update(sentences=[]), "expected a list with at least one sentence"),
        (lambda item: item.update(filename="../../secret.jpg"), "leads out of the picture folder"),
    ],
)
def test_wrong_annotations_are_told_with_file_and_item(tmp_path, change, message):
    card, root = small_set(tmp_path)
    change_item(root, 3, change)
    error = refused_run(tmp_path, *use_set(card, root))
    assert str(root / "set.json") in error and message in error


def test_broken_json_is_told_with_the_line(tmp_path):
    card, root = small_set(tmp_path)
    (root / "set.json").write_text('{"images": [\n{"filename": "a.jpg",}]}')
    assert f"{root / 'set.json'}:2:" in refused_run(tmp_path, *use_set(card, root))


def precomp_card(tmp_path: Path) -> tuple[Path, Path]:
    card = tmp_path / "pre.yaml"
    card.write_text(
        "name: pre\ntitle: P\nversion: 1\nlicence: n\ncitation: n\nformat: precomp\nfiles: {annotations: ., images: p}\n"
    )
    return card, precomp_set(tmp_path / "files")


def test_a_caption_file_that_lacks_a_line_is_told_with_both_counts(tmp_path):
    card, root = precomp_card(tmp_path)
    captions = root / "train_caps.txt"
    lines = captions.read_text().splitlines(keepends=True)
    captions.write_text("".join(lines[:17] + lines[18:]))
    error = refused_run(tmp_path, *use_set(card, root))
    assert str(captions) in error and "49" in error and "50" in error


def test_a_blank_caption_line_is_told_with_its_number(tmp_path):
    card, root = precomp_card(tmp_path)
    captions = root / "test_caps.txt"
    lines = captions.read_text().splitlines(keepends=True)
    captions.write_text("".join([*lines[:6], "\n", *lines[7:]]))
    error = refused_run(tmp_path, *use_set(card, root))
    assert f"{captions}:7: blank caption" in error and "blank=drop" in error


# Names and keys


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-d", "scens"), "data set `scens`: there is no such card; did you mean `scenes`?"),
        (("-b", "tiny-clib"), "unknown backbone tiny-clib; did you mean tiny-clip"),
        (("lorra",), "unknown method 'lorra'; did you mean lora"),
        (("-b", "ViT-B-33"), "unknown backbone ViT-B-33; did you mean ViT-B-32"),
        (("--set", "train.epoch=3"), "key `train.epoch` is unknown; did you mean `epochs`?"),
        (("--set", "trian.epochs=3"), "key `trian` is unknown; did you mean `train`?"),
        (("--set", "method.lora.rnk=3"), "key `method.lora.rnk` is unknown; did you mean `rank`?"),
        (("--preset", "papr"), "none of the methods has a preset 'papr'"),
        (("--plugin", "nowhere.py"), "--plugin nowhere.py: no such file"),
        (("-e", "nowhere.yaml"), "nowhere.yaml: cannot be read"),
    ],
)
def test_unknown_names_and_keys(tmp_path, arguments, message):
    assert message in refused_run(tmp_path, *arguments)


def test_an_unknown_key_of_a_file_is_told_with_its_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("title: mine\nmethod:\n  lora:\n    rnk: 3\n")
    error = refused_run(tmp_path, "-e", path)
    assert error == f"{path}:4: key `method.lora.rnk` is unknown; did you mean `rank`?\n"


# Weight files


def test_a_weight_file_that_is_not_there_is_found_while_planning(tmp_path):
    path = tmp_path / "no.safetensors"
    assert f"{path} was not found" in refused_run(tmp_path, "--set", f"backbone.tiny-clip.weights={path}")


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(2, 2)}, path)
    message = failing_trial(tmp_path, f"backbone.tiny-clip.weights={path}", dataset={"scenes": {"train": 30}})
    assert "other.safetensors does not fit" in message and "1 unexpected keys: weight" in message


class _Touch:
    """Creates a file when unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
@pytest.mark.parametrize("torch_format", [True, False])
def test_code_in_a_weight_file_is_never_run(tmp_path, suffix, torch_format):
    path, marker = tmp_path / f"evil{suffix}", tmp_path / "was_here"
    if torch_format:
        torch.save({"state_dict": _Touch(marker)}, path)
    else:
        path.write_bytes(pickle.dumps(_Touch(marker), protocol=2))
    message = failing_trial(tmp_path, f"backbone.tiny-clip.weights={path}", dataset={"scenes": {"train": 30}})
    assert path.name in message and "code in a file is never run" in message
    assert not marker.exists()


# Results


def test_a_results_folder_that_cannot_be_made_is_named(tmp_path):
    file = tmp_path / "file"
    file.write_text("not a folder")
    called = call("run", "lora", *SMALL_SCENES, "--results", file / "results")
    assert str(file) in called.error and "Not a directory" in called.error
    assert file.read_text() == "not a folder" and files_in(tmp_path) == {"file"}


def test_a_board_that_cannot_be_written_is_named(tmp_path):
    three(tmp_path / "results", 3.0)
    file = tmp_path / "file"
    file.write_text("not a folder")
    called = call("leaderboard", "--results", tmp_path / "results", "--out", file / "boards")
    assert str(file) in called.error


@pytest.fixture
def corrupt(tmp_path):
    """A folder with a good record and one whose number was overwritten by hand."""
    put_record(tmp_path / "results", seed=0)
    path = put_record(tmp_path / "results", seed=1)
    payload = json.loads(path.read_text())
    payload["params"]["trained"] = "many"
    path.write_text(json.dumps(payload))
    return tmp_path / "results", path


def test_a_corrupt_record_fails_the_board_unless_asked_not_to(corrupt):
    folder, path = corrupt
    for more in (["--json"], []):
        called = call("leaderboard", "--results", folder, *more)
        assert called.code == 2 and f"{path}: key `params.trained`" in called.err and "'many'" in called.err
        assert "Traceback" not in called.err
        tolerant = call("leaderboard", "--results", folder, "--skip-corrupt", *more)
        assert tolerant.code == 0 and str(path) in tolerant.err


def test_a_corrupt_record_fails_the_listing_after_the_good_ones(corrupt):
    folder, path = corrupt
    called = call("ls", "results", "--results", folder, "--json")
    assert f"{path}: key `params.trained`" in called.error and [row["seed"] for row in called.json] == [0]


def test_a_record_that_belongs_to_a_planned_trial_must_be_readable(tmp_path):
    where = ("lora", "--seed", 0, *SMALL_SCENES, "--results", tmp_path / "results")
    (trial,) = call("plan", *where, "--json").json["trials"]
    path = Path(trial["record"])
    path.parent.mkdir(parents=True)
    path.write_text('{"schema_version": 1, "spec_id": "x"')
    for verb in ("plan", "run"):
        error = call(verb, *where).error
        assert error.startswith(f"{path}: not a JSON record") and "--force" in error
    assert files_in(tmp_path / "results") == {path.relative_to(tmp_path / "results").as_posix()}
    path.write_text('{"schema_version": 99}')
    assert "key `schema_version` is 99" in call("plan", *where).error
