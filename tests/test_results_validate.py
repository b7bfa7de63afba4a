"""Records as a shared good: a folder is checked whole, and every problem in it is told."""

import shutil

import pytest
from cli_calls import call
from factories import edit, make_ranks, put_failed, put_record, three
from old_records import older, version_zero  # noqa: F401 (a fixture)
from support import ROOT

from petlbench.leaderboard.board import write_board
from petlbench.leaderboard.results_validate import validate


def said(root, **kwargs):
    return [problem.message for problem in validate(root, **kwargs).problems]


def test_what_trials_write_is_valid(tmp_path):
    three(tmp_path, 3.0)
    put_failed(tmp_path, method="vpt")
    put_record(tmp_path, backbone="ViT-B-32:openai", method="adapter")
    for name in ("a.adapter.safetensors", "README.md", ".gitignore", "step_cost.json", "board.md"):
        tmp_path.joinpath(name).write_text("{}")
    stem = next(tmp_path.glob("toyset/lora/*.json")).with_suffix("")
    stem.with_name(stem.name + ".adapter.safetensors").write_text("x")
    folder = stem.with_name(stem.name + ".adapter")
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (tmp_path / "toyset" / ".work").mkdir()
    (tmp_path / "toyset" / ".work" / "x.json").write_text("{}")
    (tmp_path / "search" / "toyset" / "lora" / "vit-x").mkdir(parents=True)
    (tmp_path / "search" / "toyset" / "lora" / "vit-x" / "0001.json").write_text('{"spec_id": "x"}')
    report = validate(tmp_path)
    assert report.problems == [] and len(report.entries) == 5


def test_committed_records_are_fit_to_be_shared():
    assert said(ROOT / "results") == []


def test_make_and_the_readme_name_the_check_of_records_and_boards():
    makefile, readme = (ROOT / "Makefile").read_text(), (ROOT / "results" / "README.md").read_text()
    assert "check-results: setup\n\t$(BIN)/benchmark results validate results --board\n" in makefile
    assert "`make check-results`" in readme
    for verb in ("benchmark results validate", "benchmark results merge", "benchmark results diff"):
        assert verb in readme


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda p: p["spec"].update(seed=9), "`spec_id` is"),
        (lambda p: p["metrics"]["test"]["recalls"].update(mR=1.0), "mean of the six recalls"),
        (lambda p: p.update(schema_version=7), "key `schema_version` is 7, this petlbench reads 1; upgrade petlbench"),
        (lambda p: p["method"].update(name="vpt"), "key `method.name` is 'vpt', but key `spec.method.name` is 'lora'"),
        (lambda p: p["data"].update(name="ucm"), "key `data.name` is 'ucm', but key `spec.dataset.name` is 'toyset'"),
        (lambda p: p["data"]["splits"]["test"].update(images=7), "ranks of 40 images and 200 captions, but key"),
        (lambda p: p["artifacts"].update(ranks="other.ranks.npz"), "key `artifacts.ranks` names other.ranks.npz"),
        (
            lambda p: p["metrics"]["test"]["other_rules"]["pessimistic"].update(t2i_r5=99.0),
            "`metrics.test.other_rules.pessimistic.t2i_r5` of the record says 99.0",
        ),
    ],
)
def test_a_changed_record_is_told(tmp_path, change, expected):
    path = put_record(tmp_path)
    edit(path, change)
    found = said(tmp_path)
    assert any(expected in message and str(tmp_path) in message for message in found), found


def test_every_complaint_of_the_schema_is_listed(tmp_path):
    path = put_record(tmp_path)
    edit(path, lambda p: (p["cost"].pop("train_s"), p.update(extra=1), p["params"].update(trained="many")))
    found = said(tmp_path)
    assert len(found) == 3
    for key in ("cost.train_s", "extra", "params.trained"):
        assert any(f"key `{key}`" in message for message in found), found


def test_a_spec_that_no_trial_can_have_is_told(tmp_path):
    path = put_record(tmp_path, change=lambda p: p["spec"].update(colour="red"))
    (message,) = said(tmp_path)
    assert str(path) in message and "key `spec.colour`" in message


def test_a_record_under_another_name_or_in_another_place_is_told(tmp_path):
    path = put_record(tmp_path)
    path.rename(path.with_name("mine.json"))
    assert any("its spec belongs at" in message and path.name in message for message in said(tmp_path))
    shutil.rmtree(tmp_path / "toyset")
    path = put_record(tmp_path)
    (tmp_path / "toyset" / "vpt").mkdir()
    path.rename(tmp_path / "toyset" / "vpt" / path.name)
    assert any("vpt" in message and "its spec belongs at" in message for message in said(tmp_path))


def test_ranks_are_needed_whole_and_of_the_same_trial(tmp_path):
    path = put_record(tmp_path)
    ranks = path.with_name(path.stem + ".ranks.npz")
    make_ranks(1.0, 5).save(ranks)
    assert any("the ranks give i2t_r1" in message for message in said(tmp_path))
    ranks.write_bytes(b"no archive")
    assert ["not a usable ranks file" in message for message in said(tmp_path)] == [True]
    ranks.unlink()
    assert ["are missing" in message for message in said(tmp_path)] == [True]


def test_seeds_whose_captions_belong_to_other_pictures_are_told(tmp_path):
    put_record(tmp_path, make_ranks(3.0, 0), seed=0)
    ranks = make_ranks(3.0, 1)
    order = ranks.owner[::-1].copy()
    swapped = type(ranks)(**{**vars(ranks), "owner": order})
    put_record(tmp_path, swapped, seed=1)
    (message,) = said(tmp_path)
    assert "array `owner` differs" in message and "-s0-" in message


@pytest.mark.parametrize(
    "name",
    [
        "toyset/lora/notes.txt",
        "toyset/lora/gone.ranks.npz",
        "toyset/lora/gone.adapter.safetensors",
        "toyset/read.me",
        "toyset/lora/deep/er.json",
        "misplaced.json",
        "deep/er/than/usual.json",
        "lost.ranks.npz",
    ],
)
def test_stray_files_are_told(tmp_path, name):
    put_record(tmp_path)
    stray = tmp_path / name
    stray.parent.mkdir(parents=True, exist_ok=True)
    stray.write_text('{"spec_id": "x"}')
    (message,) = said(tmp_path)
    assert str(stray) in message and "belongs to no record" in message


def test_links_and_leftovers_of_a_killed_write_are_told(tmp_path):
    path = put_record(tmp_path)
    leftover = path.with_name(f".{path.name}.k3x9")
    leftover.write_text("{")
    link = path.with_name("link.json")
    link.symlink_to(path)
    found = said(tmp_path)
    assert any(str(leftover) in message and "interrupted" in message for message in found)
    assert any(str(link) in message and "is a link" in message for message in found)


def test_a_name_that_leaves_the_folder_is_told(tmp_path):
    path = put_record(tmp_path, method="..", with_ranks=False)
    assert path.resolve().parent == tmp_path.resolve()  # what a record of that name would do
    inside = tmp_path / "r" / "toyset" / "lora" / path.name
    inside.parent.mkdir(parents=True)
    shutil.move(path.resolve(), inside)
    assert any("is no name of a folder" in message for message in said(tmp_path / "r"))


def test_the_board_is_checked_on_demand(tmp_path):
    three(tmp_path, 3.0)
    assert any("there is no board" in message for message in said(tmp_path, board=True))
    write_board(tmp_path, tmp_path)
    assert said(tmp_path, board=True) == []
    put_record(tmp_path, seed=7)
    assert {message.split(":")[0] for message in said(tmp_path, board=True)} == {
        str(tmp_path / name) for name in ("board.md", "board.csv", "board.html")
    }


@pytest.mark.parametrize("name", ["html", "pairs", "parquet"])
def test_every_format_of_the_board_is_checked(tmp_path, name):
    three(tmp_path, 3.0)
    three(tmp_path, 2.0, 5, method="prompt")
    (path,) = write_board(tmp_path, tmp_path, formats=[name])
    assert said(tmp_path, board=True) == []
    path.write_bytes(path.read_bytes().replace(b"lora", b"loro"))
    (message,) = said(tmp_path, board=True)
    assert message.startswith(f"{path}: is not what the records produce")


def test_a_page_with_plots_is_checked_beside_them(tmp_path):
    three(tmp_path, 3.0)
    assert call("leaderboard", "--results", tmp_path, "--plots").code == 0
    page = tmp_path / "board.html"
    assert "<figure>" in page.read_text() and said(tmp_path, board=True) == []
    page.write_text(page.read_text().replace('width="120"', "").replace("Mean recall against", "Against"))
    assert [message.split(":")[0] for message in said(tmp_path, board=True)] == [str(page)]


@pytest.mark.usefixtures("version_zero")
def test_older_records_count_and_are_counted(tmp_path):
    path = put_record(tmp_path)
    older(path)
    report = validate(tmp_path)
    assert report.ok and report.migrated == {path.relative_to(tmp_path).as_posix(): 0}
    done = call("results", "validate", tmp_path)
    assert done.code == 0 and "1 readable records (1 finished, 1 of an older schema version); no problem" in done.out


def test_the_verb_lists_every_problem_and_exits_with_1(tmp_path):
    one, two = put_record(tmp_path, seed=0), put_record(tmp_path, seed=1)
    edit(one, lambda p: p.update(extra=1))
    two.with_name(two.stem + ".ranks.npz").unlink()
    done = call("results", "validate", tmp_path)
    assert done.code == 1 and one.name in done.err and two.name in done.err and "Traceback" not in done.err
    assert "1 readable records (1 finished); 2 problems" in done.out
    payload = call("results", "validate", tmp_path, "--json").json
    assert (payload["ok"], payload["records"], len(payload["problems"])) == (False, 1, 2)
    assert "no such folder" in call("results", "validate", tmp_path / "nowhere").error
