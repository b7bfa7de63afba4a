"""`benchmark check`: what it prints, its exit codes and what it says to wrong words."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from petlbench.methods import registry

BROKEN = Path(__file__).parent / "broken_methods"

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def cli(monkeypatch):
    from petlbench.harness.cli.app import app

    monkeypatch.setenv("COLUMNS", "200")
    return lambda *args: CliRunner().invoke(app, list(map(str, args)))


def test_check_passes_and_fails_by_exit_code(cli):
    good = cli("check", "linear_probe")
    assert good.exit_code == 0, good.output
    assert "linear_probe random-clip: 16 ok" in good.output
    bad = cli("check", "--plugin", BROKEN / "batch_norm.py")
    assert bad.exit_code == 1
    assert re.search(r"frozen\s+failed\s+frozen weights or buffers changed", bad.output)
    both = cli("check", "linear_probe", "imports_ray", "--plugin", BROKEN / "imports_ray.py")
    assert both.exit_code == 1
    assert "1 of 2 methods keep the contract" in both.output


def test_check_without_a_name_says_what_to_give(cli):
    result = cli("check")
    assert result.exit_code == 2
    assert "all-methods" in result.output


def test_check_of_an_unknown_method_is_a_user_error(cli):
    result = cli("check", "linear-prob")
    assert isinstance(result.exception, registry.UnknownMethod)
    assert "did you mean linear_probe?" in str(result.exception)
