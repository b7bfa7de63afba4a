"""Kept states: equal to computed ones, mapped from disk, found again exactly where nothing that decides them has changed."""

import copy
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from petlbench.datasets.readers.scenes import read_scenes
from petlbench.datasets.split import DataError
from petlbench.harness import audit, kept_states, states_file
from petlbench.harness.data import SplitData, make_batch
from petlbench.harness.encode import inference, over_images, over_texts
from petlbench.harness.false_captions import FalseCaptions
from petlbench.harness.kept import Kept
from petlbench.harness.states_file import StatesFile, StatesLayout
from petlbench.methods.backbones.random_models import random_clip, random_two_tower
from petlbench.methods.base import MethodError, names_in
from petlbench.methods.clip_fusion import ClipFusion, ClipFusionConfig
from petlbench.methods.recipe import Recipe

CPU = torch.device("cpu")
MAPS = Path("/proc/self/maps")

pytestmark = pytest.mark.usefixtures("one_thread")


class AllSettings(ClipFusion):
    """A method that does not say which settings decide its states."""

    states_settings = None


class Broken(ClipFusion):
    """Fails at the second batch of captions."""

    def text_states(self, model, tokens):
        if len(tokens) > 1:
            raise RuntimeError("out of luck")
        return super().text_states(model, tokens)


class Growing(ClipFusion):
    """States whose width follows the batch."""

    def image_states(self, model, images):
        states = super().image_states(model, images)
        return {**states, "pooled": states["pooled"].repeat(1, len(images))}


@pytest.fixture(scope="module")
def scenes():
    return read_scenes({"train": 30, "val": 30, "test": 30})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PETLBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept_states, "EVAL_BATCH", 16)


class Case:
    """A built method on a small random backbone, with a split."""

    def __init__(self, split, make=random_clip, cls=ClipFusion, seed=0, **options):
        self.backbone = make(seed)
        self.method = cls(ClipFusionConfig(**{"width": 16, "heads": 2, **options}))
        torch.manual_seed(0)
        self.model = self.method.build(self.backbone)
        trained = {*self.method.trainable(self.model)}
        trained |= {*names_in(self.model, self.backbone, self.backbone.new_parameters())}
        audit.freeze_all_but(self.model, trained, "clip_fusion")
        self.data = SplitData.open(split, self.backbone)

    def keep(self, precision="fp32"):
        return kept_states.kept_states(self.method, self.model, self.backbone, self.data, precision, CPU)

    def computed(self, name, precision="fp32"):
        """(N, ...) image states and (U, ...) text states as they come from pixels and from fully padded words."""
        with inference(self.model, precision, CPU):
            image = over_images(
                self.data, self.backbone, lambda x: self.method.image_states(self.model, x)[name].flatten(1), CPU
            )
            full = copy.copy(self.backbone)
            full.trims_text = False
            text = over_texts(self.data, full, lambda t: self.method.text_states(self.model, t)[name].flatten(1), CPU)
        return image, text


# --- what is kept ---


@pytest.mark.parametrize("make", [random_clip, random_two_tower])
def test_kept_states_are_those_that_would_be_computed(scenes, make):
    case = Case(scenes["train"], make)
    kept = case.keep()
    assert kept.per_word == {"tokens", "mask"}
    lengths = case.data.tokens.mask.sum(1)
    longest, words = int(lengths.max()), len(lengths)
    assert kept.text["tokens"].shape[:2] == (words, longest) and longest > lengths.min()
    image, text = case.computed("pooled")
    torch.testing.assert_close(kept.images(torch.arange(len(image)))["pooled"], image)
    torch.testing.assert_close(kept.texts(torch.arange(words))["pooled"], text, atol=1e-5, rtol=1e-5)
    image, text = case.computed("tokens")
    torch.testing.assert_close(kept.image["tokens"].flatten(1), image)
    width = kept.text["tokens"].shape[2]
    real = case.data.tokens.mask
    torch.testing.assert_close(
        kept.text["tokens"][real[:, :longest]], text.unflatten(1, (-1, width))[real], atol=1e-5, rtol=1e-5
    )
    assert torch.equal(kept.text["mask"], real[:, :longest])


def test_rows_come_in_the_order_asked_and_no_longer_than_they_need(scenes):
    case = Case(scenes["train"])
    kept, lengths = case.keep(), case.data.tokens.mask.sum(1)
    short = torch.argsort(lengths)[:2]
    ids = torch.stack([short[1], short[0], short[1]])
    found = kept.texts(ids)
    longest = int(lengths[ids].max())
    assert found["tokens"].shape[:2] == (3, longest) and longest < lengths.max()
    assert torch.equal(found["mask"], case.data.tokens.mask[ids][:, :longest])
    assert torch.equal(found["tokens"], kept.text["tokens"][ids][:, :longest])
    assert found["pooled"].shape[1] == case.backbone.text.pooled_width
    rows = torch.tensor([7, 0, 7])
    assert torch.equal(kept.images(rows)["tokens"], kept.image["tokens"][rows])


def test_a_width_that_equals_a_length_is_not_cut(scenes):
    """Pooled outputs are as wide here as the longest caption is long."""
    lengths = random_clip(context_length=32).tokenize(scenes["train"].distinct).mask.sum(1)
    longest = int(lengths.max()) + int(lengths.max()) % 2

    def make(seed):
        return random_clip(seed, context_length=longest + 2, width=32, text_width=longest)

    case = Case(scenes["train"], make)
    assert case.data.tokens.mask.sum(1).max() in (longest, longest - 1)
    short = case.data.tokens.mask.sum(1).argmin()[None]
    found = case.keep().texts(short)
    assert found["pooled"].shape == (1, longest) and found["tokens"].shape[1] < longest


def test_where_padding_is_seen_nothing_is_trimmed(scenes):
    case = Case(scenes["train"])
    case.backbone.trims_text = False
    kept = case.keep()
    assert not kept.per_word and kept.texts(torch.tensor([0]))["tokens"].shape[1] == case.data.tokens.ids.shape[1]


def test_a_batch_of_kept_states_gives_the_loss_of_pixels_and_words(scenes):
    split = scenes["train"]
    case = Case(split, random_two_tower)
    rows = torch.arange(0, 40, 5).numpy()
    plain, kept = (
        make_batch(case.data, case.backbone, rows, Recipe(), CPU, None, what, FalseCaptions(split, 3, False, 0, 1))
        for what in (Kept(), Kept(states=case.keep()))
    )
    assert kept.images is None and torch.equal(plain.candidate_ids, kept.candidate_ids)
    case.model.eval()
    first, second = (case.method.loss(case.model, batch) for batch in (plain, kept))
    assert set(first) == {"ranking", "head", "contrastive"}
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-4, rtol=1e-4)
    case.model.train()
    sum(case.method.loss(case.model, kept).values()).backward()
    assert case.model.head.image_in.weight.grad is not None, "states from disk can be trained on"


def test_under_bf16_half_the_bytes_are_stored_and_nothing_is_lost_to_the_layers_behind(scenes):
    case = Case(scenes["train"])
    full, half = case.keep(), case.keep("bf16")
    assert full.path != half.path
    assert half.path.stat().st_size < 0.55 * full.path.stat().st_size
    assert (
        half.image["tokens"].dtype == torch.bfloat16 and half.images(torch.tensor([0]))["tokens"].dtype == torch.float32
    )
    raw = case.computed("pooled", "bf16")[0]
    rows = torch.arange(30)
    assert torch.equal(half.images(rows)["pooled"], raw.bfloat16().float())
    with inference(case.model, "bf16", CPU):  # what stands behind reads bf16, whatever is stored
        states = full.images(rows)
        exact = case.method.prepare_image(case.model, states)
        rounded = {name: value.bfloat16().float() for name, value in states.items()}
        for name, value in case.method.prepare_image(case.model, rounded).items():
            assert torch.equal(value, exact[name])


# --- found again, or not ---


def test_a_second_call_computes_nothing(scenes, monkeypatch):
    case = Case(scenes["train"])
    first = case.keep()

    def never(*arguments):
        raise AssertionError("computed again")

    monkeypatch.setattr(ClipFusion, "image_states", never)
    monkeypatch.setattr(ClipFusion, "text_states", never)
    second = case.keep()
    assert first.fresh and not second.fresh and first.path == second.path
    assert all(torch.equal(value, second.image[name]) for name, value in first.image.items())
    other_head = Case(scenes["train"], layers=3, width=32, residual=False)
    assert other_head.keep().path == first.path, "every form of the head shares them"


def test_training_the_head_leaves_the_key_and_other_weights_change_it(scenes):
    case = Case(scenes["train"], random_two_tower)
    path = case.keep().path
    with torch.no_grad():
        case.model.head.image_in.weight.add_(1)
        case.model.backbone.image_head[0].weight.add_(1)
    assert case.keep().path == path
    with torch.no_grad():
        case.model.backbone.vision.layernorm.weight.add_(1e-3)
    assert case.keep().path != path


def test_the_key_holds_everything_that_decides_the_states(scenes):
    paths = [
        case.keep().path
        for case in (
            Case(scenes["train"]),
            Case(scenes["train"], seed=1),
            Case(scenes["val"]),
            Case(scenes["train"], cls=AllSettings),
            Case(scenes["train"], cls=AllSettings, layers=1),
        )
    ]
    assert len(set(paths)) == len(paths)
    assert paths[0] == Case(scenes["train"]).keep().path


@pytest.mark.skipif(not MAPS.exists(), reason="needs /proc/self/maps to see what is mapped")
def test_the_file_is_mapped_and_not_read(scenes):
    case = Case(scenes["train"])
    case.keep()
    kept = case.keep()
    with MAPS.open(encoding="utf-8") as lines:
        ranges = [line.split()[0].split("-") for line in lines if str(kept.path) in line]
    for tensor in (*kept.image.values(), *kept.text.values()):
        assert any(int(start, 16) <= tensor.data_ptr() < int(end, 16) for start, end in ranges)


# --- the file ---


def test_the_file_is_what_the_library_reads(tmp_path):
    layout = StatesLayout(torch.float32)
    layout.add("a.", {"flag": torch.zeros(1, 3, dtype=torch.bool), "x": torch.zeros(1, 3, 2)}, 4, {"flag", "x"}, 2)
    layout.add("b.", {"n": torch.zeros(1, dtype=torch.int64), "y": torch.zeros(1, 5, dtype=torch.float64)}, 2)
    path = tmp_path / "states.safetensors"
    x, y = torch.randn(2, 5, 2), torch.randn(2, 5, dtype=torch.float64)
    with StatesFile(path, layout, {"per_word": "x"}) as file:
        file.write("a.", torch.tensor([3, 1]), {"x": x, "flag": torch.ones(2, 4, dtype=torch.bool)})
        file.write("b.", torch.tensor([0, 1]), {"y": y, "n": torch.tensor([7, 8])})
        assert not path.exists()
    found = load_file(path)
    assert torch.equal(found["a.x"], torch.stack([torch.zeros(5, 2), x[1], torch.zeros(5, 2), x[0]]))
    assert found["a.flag"].sum(1).tolist() == [0, 4, 0, 4] and found["a.flag"].shape == (4, 5)
    assert torch.equal(found["b.y"], y.float()) and found["b.n"].tolist() == [7, 8]


def test_a_failure_midway_leaves_nothing_that_could_be_taken_for_complete(scenes):
    with pytest.raises(RuntimeError, match="out of luck"):
        Case(scenes["train"], cls=Broken).keep()
    left = [path.suffix for path in (kept_states.cache_folder() / "states").iterdir()]
    assert set(left) <= {".lock"}


def test_states_of_changing_width_are_refused(scenes):
    with pytest.raises(MethodError, match=r"image\.pooled of 16 items has shape \(16, 512\), but \(32,\) per item"):
        Case(scenes["train"], cls=Growing).keep()
    layout = StatesLayout(torch.float32)
    with pytest.raises(MethodError, match=r"image\.x is of type torch\.int32"):
        layout.add("image.", {"x": torch.zeros(1, 2, dtype=torch.int32)}, 3)


def test_a_model_without_frozen_weights_is_refused(scenes):
    case = Case(scenes["train"])
    case.model.requires_grad_(True)
    with pytest.raises(MethodError, match="no parameter of the model is frozen"):
        case.keep()


def test_a_full_disk_is_told_before_anything_is_computed(scenes, monkeypatch):
    case = Case(scenes["train"])
    free = namedtuple("usage", "total used free")(0, 0, 1000)
    monkeypatch.setattr(states_file.shutil, "disk_usage", lambda path: free)
    monkeypatch.setattr(StatesFile, "write", lambda *given: pytest.fail("the work was begun"))
    with pytest.raises(DataError, match=r"kept states need \d+ MiB, 0 MiB are free.*PETLBENCH_CACHE"):
        case.keep()
    monkeypatch.undo()


def test_a_damaged_entry_names_the_file_and_the_way_out(scenes):
    case = Case(scenes["train"])
    path = case.keep().path
    size = path.stat().st_size
    shutil.copy(path, path.with_suffix(".copy"))
    with path.open("r+b") as file:
        file.truncate(size // 2)
    with pytest.raises(DataError, match=rf"{path.name}: this entry of kept states is damaged .*delete the file"):
        case.keep()
    path.unlink()
    assert case.keep().fresh and path.read_bytes() == path.with_suffix(".copy").read_bytes()
