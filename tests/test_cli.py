"""The command line as its user meets it."""

import errno
import re
from pathlib import Path
from unittest import mock

import pytest
import typer
import yaml
from cli_calls import SMALL_SCENES, call, python, small_set, use_set
from factories import make_payload, make_ranks, put_failed, put_record, three
from support import ROOT

import petlbench
from petlbench.datasets.registry import list_cards
from petlbench.harness.cli import app as cli_app
from petlbench.harness.record import Record
from petlbench.harness.record_files import write_record
from petlbench.harness.schedule import Outcome

HEAVY = (
    "torch",
    "torchvision",
    "ray",
    "deepspeed",
    "transformers",
    "open_clip",
    "peft",
    "pandas",
    "matplotlib",
    "scipy",
)
COMMAND = typer.main.get_command(cli_app.app)
VERBS = tuple(COMMAND.commands)


def paths(command, *above):
    """Every verb, and every verb below one, as words."""
    for name, one in getattr(command, "commands", {}).items():
        yield (*above, name)
        yield from paths(one, *above, name)


def record(trial, spec, status="ok"):
    """Write the record that a planned trial would leave."""
    payload = make_payload() | {"spec": spec, "spec_id": trial["spec_id"], "status": status}
    payload["method"]["name"] = trial["method"]
    if status == "failed":
        payload |= {"metrics": {}, "cost": None}
        payload["error"] = {"type": "RuntimeError", "message": "CUDA out of memory", "traceback": ""}
    write_record(Record.model_validate(payload), Path(trial["record"]))


# Help


def test_help_loads_nothing_heavy():
    code = f"""
import contextlib, io, sys
sys.argv = ["benchmark", "run", "--help"]
from petlbench.harness.cli import main
for argv in (["benchmark", "--help"], ["benchmark", "run", "--help"], ["benchmark", "plan", "--help"]):
    sys.argv = argv
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as stop:
            assert not stop.code, stop.code
    assert "Usage" in out.getvalue()
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = python("-c", code, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_importing_the_command_line_loads_nothing_heavy():
    code = f"import sys, petlbench.harness.cli.app; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = python("-c", code, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_no_verb_is_lost():
    known = (
        "run plan evaluate leaderboard ls data cache check new-method search export-backbone compare-published gallery"
    )
    assert {*known.split(), "breakdown", "transfer", "results"} <= set(VERBS)
    below = {words for words in paths(COMMAND) if len(words) > 1}
    assert {("ls", "methods"), ("data", "doctor"), ("cache", "clear"), ("results", "merge")} <= below


def test_help_names_every_verb_and_a_bare_call_shows_it():
    shown = call("--help")
    assert shown.code == 0 and all(re.search(rf"│ {verb} ", shown.out) for verb in VERBS)
    assert all(verb in call().out + call().err for verb in VERBS)


@pytest.mark.parametrize("path", list(paths(COMMAND)), ids=" ".join)
def test_every_verb_explains_itself_and_every_option_has_help(path):
    shown = call(*path, "--help")
    assert shown.code == 0 and f"Usage: benchmark {' '.join(path)}" in shown.out
    command = COMMAND
    for name in path:
        command = command.commands[name]
    assert command.help and command.help.split("\n")[0].rstrip().endswith((".", ",", "for", "when"))
    assert all(getattr(param, "help", None) for param in command.params), [p.name for p in command.params]


def test_the_examples_of_the_help_pages_are_accepted():
    """Every option of an example exists (they are parsed, not run)."""
    found = []
    for command in COMMAND.commands.values():
        for line in (command.help or "").splitlines():
            if line.strip().startswith("benchmark "):
                verb, *words = line.split()[1:]
                COMMAND.commands[verb].make_context(verb, words, resilient_parsing=False)
                found.append(verb)
    assert all(found.count(verb) >= 2 for verb in ("run", "plan", "evaluate", "search", "gallery")), found


def test_version():
    assert call("--version").out == f"petlbench {petlbench.__version__}\n"


# Errors


def test_a_user_error_is_one_message_without_traceback():
    called = call("plan", "lorra")
    assert called.error.startswith("unknown method 'lorra'; did you mean lora") and called.out == ""


def test_errors_of_the_system_name_the_file():
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "/full/x.json")

    with mock.patch("petlbench.harness.experiment.load_experiment", fail):
        assert call("plan").error == "/full/x.json: No space left on device\n"


def test_an_unforeseen_error_keeps_its_traceback():
    with (
        mock.patch("petlbench.harness.experiment.load_experiment", side_effect=RuntimeError("a fault of ours")),
        pytest.raises(RuntimeError, match="a fault of ours"),
    ):
        call("plan")


@pytest.mark.parametrize("arguments", [("plna",), ("plan", "--sed", "1"), ("plan", "--seed", "x"), ("ls", "methds")])
def test_wrong_usage_exits_with_two_and_points_to_help(arguments):
    called = call(*arguments)
    assert called.code == 2 and called.out == "" and "--help" in called.err


# One meaning for files and options


def test_a_file_and_options_give_the_same_trials(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "methods": ["lora", "linear_probe"],
                "datasets": ["scenes"],
                "backbones": ["tiny-clip"],
                "seeds": [0, 3],
                "train": {"epochs": 2},
                "method": {"lora": {"rank": 16}},
                "dataset": {"scenes": {"train": 30, "val": 30, "test": 30}},
                "resources": {"max_concurrent": 1},
                "results": str(tmp_path / "out"),
            }
        )
    )
    by_file = call("plan", "-e", path, "--json", "--full")
    by_options = call(
        *("plan", "lora", "linear_probe", "-d", "scenes", "-b", "tiny-clip", "--seed", 0, "--seed", 3),
        *(
            *SMALL_SCENES,
            "--set",
            "train.epochs=2",
            "--set",
            "method.lora.rank=16",
            "--set",
            "resources.max_concurrent=1",
        ),
        *("--results", tmp_path / "out", "--json", "--full"),
    )
    assert by_file.json == by_options.json and by_file.json["to_run"] == 4
    overridden = call("plan", "-e", path, "lora", "--seed", 3, "--set", "method.lora.rank=4", "--json", "--full").json
    assert [(t["seed"], t["spec"]["method"]["options"]["rank"]) for t in overridden["trials"]] == [(3, 4)]


# plan


def test_plan_tells_states_estimates_and_what_is_left_out(tmp_path):
    where = ("--results", tmp_path, "--set", "train.epochs=1", *SMALL_SCENES)
    first = call("plan", "lora", "zero_shot", *where, "--json").json
    assert (first["to_run"], first["recorded"], first["unknown"], first["estimated_s"]) == (4, 0, 4, 0)
    # Seed 0 of LoRA is recorded with a known cost, seed 1 has failed.
    done, failed = first["trials"][0], first["trials"][1]
    full = call("plan", "lora", "zero_shot", *where, "--json", "--full").json["trials"]
    record(done, full[0]["spec"])
    record(failed, full[1]["spec"], "failed")

    again = call("plan", "lora", "zero_shot", *where, "--json").json
    assert [t["state"] for t in again["trials"]] == ["recorded", "failed before", "to run", "to run"]
    assert (again["to_run"], again["recorded"], again["unknown"], again["estimated_s"]) == (3, 1, 1, 2 * 13.5)
    assert [t["spec_id"] for t in again["trials"]] == [t["spec_id"] for t in first["trials"]]

    text = call("plan", "lora", "zero_shot", *where).out
    assert text.splitlines()[-1] == "3 to run, 1 recorded; about 27 s of trial time, 1 trial of unknown cost"
    assert f"failed before: lora/scenes/tiny-clip/s{failed['seed']}: CUDA out of memory" in text
    assert call("plan", "lora", "zero_shot", *where, "--force", "--json").json["to_run"] == 4


def test_a_table_in_a_pipe_keeps_each_row_on_a_line_unless_columns_says_otherwise(tmp_path):
    words = ("plan", "cross_modal_adapter", "--seed", "0", "--results", tmp_path, *SMALL_SCENES)
    (row,) = (line for line in call(*words, columns=None).out.splitlines() if "to run  " in line)
    assert row.split()[0] == "cross_modal_adapter"
    assert "cross_modal_adapter" not in call(*words, columns="50").out


def test_plan_warns_of_unreadable_records_of_other_trials_on_stderr_only(tmp_path):
    other = put_record(tmp_path)
    other.write_text("{")
    called = call("plan", "lora", *SMALL_SCENES, "--results", tmp_path, "--json")
    assert called.code == 0 and called.json["to_run"] == 3
    assert called.err.startswith("warning: ") and str(other) in called.err


# ls


def test_ls_methods_lists_files_and_plugins(tmp_path):
    called = call("ls", "methods", "--json")
    names = [row["name"] for row in called.json]
    assert {"lora", "zero_shot", "linear_probe", "full_finetune"} <= set(names) and called.err == ""
    (lora,) = call("ls", "methods", "lora", "--json").json
    assert lora["config"]["rank"] == "8" and "train.lr" in lora["space"] and lora["origin"] == "petlbench"
    assert call("new-method", "my_own", "--out", tmp_path).code == 0
    (mine,) = call("ls", "methods", "my_*", "--plugin", tmp_path / "my_own.py", "--json").json
    assert mine["origin"] == "my_own.py"
    assert "LoRA" in call("ls", "methods").out


def test_ls_datasets_gives_every_card_with_its_counts():
    rows = {row["name"]: row for row in call("ls", "datasets", "--json").json}
    assert tuple(rows) == list_cards()
    assert rows["ucm"]["expected"]["test"] == {"images": 210, "captions": 1050}
    assert [row["name"] for row in call("ls", "datasets", "ucm*", "--json").json] == ["ucm", "ucm-precomp"]
    assert "train 1,680 / val 210 / test 210" in call("ls", "datasets", "ucm").out


def test_ls_backbones_knows_the_shipped_and_the_open_clip_ones():
    names = {row["name"]: row["kind"] for row in call("ls", "backbones", "--json").json}
    assert names["tiny-clip"] == "open_clip" and names["vits14-minilm"] == "two_tower" and "ViT-B-32" in names
    assert "tiny-clip" in call("ls", "backbones", "tiny*").out


def test_ls_results_lists_good_and_failed_records(tmp_path):
    put_record(tmp_path, seed=1)
    put_failed(tmp_path, method="lora_x", message="[bold]boom")
    rows = call("ls", "results", "--results", tmp_path, "--json").json
    assert [(row["method"], row["seed"], row["status"]) for row in rows] == [("lora", 1, "ok"), ("lora_x", 0, "failed")]
    assert isinstance(rows[0]["mR"], float) and rows[1]["mR"] is None and rows[1]["error"] == "[bold]boom"
    assert (tmp_path / rows[0]["record"]).is_file()
    assert "failed" in call("ls", "results", "--results", tmp_path).out


def test_ls_results_of_a_missing_folder_is_an_error(tmp_path):
    assert "no such results folder" in call("ls", "results", "--results", tmp_path / "no").error


# leaderboard


def test_leaderboard_writes_files_or_prints_json_only(tmp_path):
    three(tmp_path, 3.0)
    called = call("leaderboard", "--results", tmp_path, "--json")
    assert called.code == 0 and called.json and not (tmp_path / "board.md").exists()
    written = call("leaderboard", "--results", tmp_path, "--out", tmp_path / "boards")
    assert written.code == 0 and {p.name for p in (tmp_path / "boards").iterdir()} >= {"board.md", "board.csv"}
    first = (tmp_path / "boards" / "board.md").read_bytes()
    call("leaderboard", "--results", tmp_path, "--out", tmp_path / "boards")
    assert (tmp_path / "boards" / "board.md").read_bytes() == first


def test_leaderboard_writes_the_formats_asked_for(tmp_path):
    three(tmp_path, 3.0)
    out = tmp_path / "boards"
    called = call("leaderboard", "--results", tmp_path, "--out", out, "--format", "md, TEX", "--format", "parquet,md")
    assert called.code == 0 and {p.name for p in out.iterdir()} == {"board.md", "board.tex", "board.parquet"}
    for wrong, told in (
        (("--format", "pdf"), "'pdf' is no format; choose from md, csv,"),
        (("--json", "--format", "md"), "leave out --format"),
    ):
        refused = call("leaderboard", "--results", tmp_path, "--out", tmp_path / "no", *wrong)
        assert refused.code == 2 and told in " ".join(refused.err.replace("│", " ").split())
    assert not (tmp_path / "no").exists()


# data


def test_doctor_prints_a_report_or_json_only(tmp_path):
    card, root = small_set(tmp_path)
    called = call("data", "doctor", card, "--root", root, "--json")
    assert called.code == 0 and called.err == ""
    assert {name: split["images"] for name, split in called.json["splits"].items()} == {"train": 8, "val": 2, "test": 2}
    assert "Toy (toyset)" in call("data", "doctor", card, "--root", root).out
    assert call("data", "doctor", card, "--root", root, "--no-pixels", "--json").json["pixels_checked"] is False


def test_doctor_fails_on_errors_after_the_whole_report(tmp_path):
    card, root = small_set(tmp_path)
    (root / "pictures" / "park_0.jpg").unlink()
    (root / "pictures" / "park_10.jpg").unlink()
    called = call("data", "doctor", card, "--root", root, "--json")
    assert called.code == 1
    assert [picture["name"] for picture in called.json["bad_pictures"]] == ["park_0.jpg", "park_10.jpg"]


def test_doctor_reports_blank_captions_and_listens_to_what_shall_become_of_them(tmp_path):
    card, root = small_set(tmp_path)
    text = (root / "set.json").read_text()
    (root / "set.json").write_text(text.replace("number 0 seen from above", " "))

    def blank(*more):
        called = call("data", "doctor", card, "--root", root, "--json", *more)
        return called.code, [f["severity"] for f in called.json["findings"] if f["code"] == "D005"]

    assert blank() == (1, ["error"])
    assert blank("--set", "blank=drop")[1] == ["warning"]
    assert "blank" in call("data", "doctor", card, "--root", root, "--set", "blank=away").error


def test_prepare_fills_the_cache_once(tmp_path, monkeypatch):
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path / "cache"))
    card, root = small_set(tmp_path)
    first = call("data", "prepare", card, "--root", root, "--resolution", 32)
    assert first.code == 0 and "train: 8 pictures at 32 px in " in first.out and "was there" not in first.out
    assert call("data", "prepare", card, "--root", root, "--resolution", 32).out.count("(was there)") == 3


# run


def test_run_skips_what_is_recorded_and_prints_the_board(tmp_path):
    """Everything recorded: no Ray, no training, just the board."""
    where = ("--results", tmp_path, "--seed", 0, *SMALL_SCENES)
    (trial,) = call("plan", "lora", *where, "--json", "--full").json["trials"]
    record(trial, trial["spec"])
    called = call("run", "lora", *where)
    assert called.code == 0, called
    assert "1 of 1 trials are recorded already (--force runs them again)" in called.out
    assert (tmp_path / "board.md").is_file() and (tmp_path / "board.csv").is_file()


def test_run_with_nothing_left_says_so_and_writes_nothing(tmp_path):
    plugin = tmp_path / "picky.py"
    assert call("new-method", "picky", "--out", tmp_path).code == 0
    plugin.write_text(
        plugin.read_text().replace("identity_start = True", 'identity_start = True\n    kinds = ("two_tower",)')
    )
    called = call("run", "picky", "--plugin", plugin, *SMALL_SCENES, "--results", tmp_path / "out")
    assert called.code == 1 and "left out: picky/scenes/tiny-clip: works on backbones of kind two_tower" in called.out
    assert "nothing to run" in called.out and not (tmp_path / "out").exists()


def test_options_of_run_reach_the_scheduler(tmp_path):
    seen = {}

    def run_trials(todo, resources, display, trackers):
        seen.update(todo=todo, resources=resources)
        put_record(tmp_path, make_ranks(3.0))
        return Outcome(0, [("lora/x", "RuntimeError: [boom]")], interrupted=True)

    with mock.patch("petlbench.harness.schedule.run_trials", run_trials):
        called = call(
            *("run", "lora", "--seed", 1, *SMALL_SCENES, "--results", tmp_path),
            *("--jobs", 2, "--gpus-per-trial", 0.5, "--address", "host:6379"),
        )
    assert [p.trial.spec.seed for p in seen["todo"]] == [1]
    used = seen["resources"]
    assert (used.max_concurrent, used.gpus_per_trial, used.address) == (2, 0.5, "host:6379")
    assert seen["todo"][0].trial.paths.command[:2] == ["benchmark", "run"]
    assert called.code == 1 and "failed: lora/x: RuntimeError: [boom]" in called.out and "interrupted" in called.out


def test_a_set_of_ones_own_goes_by_its_path(tmp_path):
    card, root = small_set(tmp_path)
    (trial,) = call("plan", "lora", "--seed", 0, *use_set(card, root), "--json").json["trials"]
    assert (trial["dataset"], trial["backbone"]) == ("toyset", "tiny-clip")
