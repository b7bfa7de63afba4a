"""Reading what lies beside the tensors of a PyTorch file: no object is made, no code is run."""

import os

import pytest
import torch

from petlbench.methods.backbones import torch_file
from petlbench.methods.backbones.base import BackboneError
from petlbench.methods.backbones.weights_io import read_released, read_state_dict


class Table(dict):
    """As YAML libraries make them: a dictionary with notes of its own."""

    def __init__(self, **entries):
        super().__init__(**entries)
        self.comments = [Line(3)]


class Row(list):
    def __init__(self, *args):
        super().__init__(*args)
        self.line = Line(4)


class Number(float):
    pass


class Line:
    def __init__(self, number):
        self.number = number


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def weights():
    return {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(0.07)}


def saved(path, content):
    torch.save(content, path)
    return path


@pytest.fixture
def with_objects(tmp_path):
    config = Table(model="geo", sizes=Row([1, "two", Number(0.5)]), nested=Table(lr=Number(4e-6), on=True, none=None))
    return saved(tmp_path / "checkpoint.pth", {"model": weights(), "config": config, "epoch": 3})


def test_weights_before_objects_are_read(with_objects):
    with pytest.raises(Exception, match="Unsupported global"):
        torch.load(with_objects, weights_only=True)
    state = read_state_dict(with_objects)
    assert state.keys() == weights().keys() and all(torch.equal(state[k], v) for k, v in weights().items())


def test_plain_values_of_objects_are_kept(with_objects):
    expected = {"model": "geo", "sizes": [1, "two", 0.5], "nested": {"lr": 4e-6, "on": True, "none": None}}
    values = torch_file.plain_values(with_objects)
    assert values["config"] == expected and values["epoch"] == 3
    assert values["model"] == {"a": None, "b": None}
    assert read_released(with_objects)[1] == expected


def test_plain_files_read_as_ever(tmp_path):
    path = saved(tmp_path / "plain.pth", {"model": weights(), "config": {"model": "vit", "lr": 1e-3, "pair": (1, 2)}})
    assert read_released(path)[1] == {"model": "vit", "lr": 1e-3, "pair": (1, 2)}
    assert torch_file.plain_values(path)["config"] == {"model": "vit", "lr": 1e-3, "pair": [1, 2]}


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    after = saved(tmp_path / "after.pth", {"model": weights(), "config": Bomb()})
    assert read_state_dict(after).keys() == weights().keys()
    assert torch_file.plain_values(after)["config"] is None
    for name, content in (("before", {"config": Bomb(), "model": weights()}), ("inside", {"model": {"a": Bomb()}})):
        with pytest.raises(BackboneError, match="code in a file is never run"):
            read_state_dict(saved(tmp_path / f"{name}.pth", content))
    assert not (tmp_path / "exploded").exists()


def test_other_files_hold_no_plain_values(tmp_path):
    text = tmp_path / "text.pth"
    text.write_bytes(b"no archive")
    for path in (text, saved(tmp_path / "list.pth", [weights()])):
        assert torch_file.plain_values(path) == {}
        assert torch_file.without_objects(path, ("model",)) is None


@pytest.mark.parametrize("length", [1, 20, 60, 200, 400])
def test_damaged_instructions_are_no_values(with_objects, tmp_path, length, monkeypatch):
    name, data = torch_file._stream(with_objects)
    monkeypatch.setattr(torch_file, "_stream", lambda path: (name, data[:length]))
    assert torch_file.plain_values(with_objects) == {}
