"""What the README says is what the project does."""

import re
import shlex
import subprocess
import sys

import pytest
import typer.main
import yaml
from support import ROOT

from petlbench.harness.cli.app import app
from petlbench.harness.experiment import load_experiment

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for language, block in BLOCKS
    if not language
    for line in block.splitlines()
    if line.startswith("benchmark ")
]
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md", "methods/README.md"),
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
]


def expanded(command: str) -> list[str]:
    """``ls methods|datasets`` stands for one command per alternative."""
    if found := re.search(r"\S*\|\S*", command):
        return [command.replace(found.group(), choice) for choice in found.group().split("|")]
    return [command]


@pytest.mark.parametrize("command", [one for line in COMMANDS for one in expanded(line)])
def test_every_command_parses(command):
    """Walk to the verb and let it parse its arguments; unknown verbs and options raise."""
    words = shlex.split(command)[1:]
    verb = typer.main.get_command(app)
    while hasattr(verb, "commands"):
        assert words[0] in verb.commands, f"{command}: no verb {words[0]}"
        verb = verb.commands[words.pop(0)]
    verb.make_context(command, words)


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 10


def test_the_experiment_file_is_valid(tmp_path):
    (text,) = [block for language, block in BLOCKS if language == "yaml"]
    path = tmp_path / "my_experiment.yaml"
    path.write_text(text)
    asked = load_experiment(path)
    assert asked.datasets == yaml.safe_load(text)["datasets"]


def test_the_two_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    page = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{document}: {target}"


def test_the_board_is_that_of_the_results_folder():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "readme_board.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_committed_boards_are_that_of_their_records():
    from petlbench.leaderboard.board import FORMATS
    from petlbench.leaderboard.results_validate import validate

    assert [problem.message for problem in validate(ROOT / "results", board=True).problems] == []
    assert {path.name for path in (ROOT / "results").glob("board.*")} == {f"board.{name}" for name in FORMATS}


def test_committed_experiments_are_valid():
    for path in sorted((ROOT / "results" / "experiments").glob("*.yaml")):
        assert load_experiment(path).title
