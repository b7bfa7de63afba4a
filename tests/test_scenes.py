"""The embedded procedural set: the same everywhere, and its captions true."""

import hashlib
import os
import pickle
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT

from petlbench.datasets.readers.scenes import STRIDE, read_scenes
from petlbench.datasets.scenes.captions import captions
from petlbench.datasets.scenes.generator import (
    GENERATOR_VERSION,
    NATIVE_SIZE,
    TEXTURE_KINDS,
    SceneImage,
    class_of,
    describe,
    draw,
    render,
)
from petlbench.datasets.scenes.geometry import compass, direction_of, position_of
from petlbench.datasets.scenes.layouts import LAYOUTS
from petlbench.datasets.scenes.lexicon import COLOUR_WORDS, MASS, NOUNS, NUMBERS
from petlbench.datasets.scenes.model import FRAME
from petlbench.datasets.scenes.painters import PAINTERS
from petlbench.datasets.scenes.worlds import CLASSES, HELD_OUT, PRETRAIN, SCENES, WORLDS, world_named
from petlbench.datasets.split import DataError, ImageRef

GOLDEN = {  # sha256 of the RGB bytes, first 16 digits; changes only together with GENERATOR_VERSION
    ("scenes", 0, 0): "f807a759feabb0bd",
    ("scenes", 0, 6): "b5cf800e2c3b4721",
    ("scenes", 3, 100_015): "aaedd7fa70a4c9b1",
    ("pretrain", 0, 1): "803e71eeaf9e9966",
    ("pretrain", 7, 33): "f69493a280149bb1",
}

worlds = st.sampled_from([SCENES, PRETRAIN])
indices = st.integers(0, 3 * STRIDE)


def digest(picture) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize(("world", "seed", "index"), GOLDEN)
def test_pixels_are_those_of_this_generator_version(world, seed, index):
    assert GENERATOR_VERSION == 1
    assert digest(render(world_named(world), seed, index)) == GOLDEN[world, seed, index]


def test_another_process_draws_and_says_the_same_in_another_order():
    program = (
        "import hashlib\n"
        "from petlbench.datasets.scenes.generator import *\n"
        "from petlbench.datasets.scenes.captions import captions\n"
        "from petlbench.datasets.scenes.worlds import SCENES\n"
        "for i in (40, 7, 22):\n"
        "    s = describe(SCENES, 5, i)\n"
        "    print(hashlib.sha256(draw(s).tobytes()).hexdigest()[:16], captions(s))\n"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    for index in (7, 22, 40):
        scene = describe(SCENES, 5, index)
        assert f"{digest(draw(scene))} {captions(scene)}" in done.stdout.splitlines()


@given(worlds, st.integers(0, 50), indices)
@settings(max_examples=60, deadline=None)
def test_five_different_sentences(world, seed, index):
    found = captions(describe(world, seed, index))
    assert len(found) == len(set(found)) == 5
    for text in found:
        assert re.fullmatch(r"[A-Z][a-z,: -]*\.", text), text
        assert "  " not in text
        assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text.lower()), text


def kinds_by_noun(world: str) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for kind, nouns in NOUNS[world].items():
        for singular, plural in nouns:
            found.setdefault(singular, set()).add(kind)
            found.setdefault(plural, set()).add(kind)
    return found


def stated_counts(text: str, nouns: dict[str, set[str]]):
    """(number, candidate kinds, words between) for every numbered noun phrase of a caption."""
    numbers = "|".join(NUMBERS[1:])
    ordered = "|".join(sorted(map(re.escape, nouns), key=len, reverse=True))
    for match in re.finditer(rf"\b({numbers}) ((?:[a-z-]+ ){{0,3}}?)({ordered})\b", text.lower()):
        yield NUMBERS.index(match[1]), nouns[match[3]], match[2].strip()


@pytest.mark.parametrize("world", [SCENES, PRETRAIN], ids=lambda w: w.name)
def test_every_stated_count_and_colour_is_a_fact(world):
    nouns, stated = kinds_by_noun(world.name), 0
    for index in range(240):
        scene = describe(world, 11, index)
        for text in captions(scene):
            for number, kinds, between in stated_counts(text, nouns):
                stated += 1
                matching = [g for g in scene.groups if g.kind in kinds and g.count == number and g.counted]
                assert matching, f"{text!r} but {[(g.kind, g.count) for g in scene.groups]}"
                names = {g.colour for g in matching}
                words = {w for n in names if n for w in COLOUR_WORDS[world.name].get(n, (n,))}
                said = [w for w in ("red", "blue", "white", "orange", "turquoise", "brown") if w in between.split()]
                assert all(w in words for w in said), f"{text!r} but {names}"
    assert stated > 400


def test_a_wrong_count_would_be_noticed():
    nouns = kinds_by_noun("scenes")
    assert list(stated_counts("Three white storage tanks in a row.", nouns)) == [(3, {"tank"}, "white")]


@given(worlds, st.integers(0, 20), indices)
@settings(max_examples=80, deadline=None)
def test_counted_objects_lie_in_the_frame_and_positions_are_where_they_are(world, seed, index):
    scene = describe(world, seed, index)
    assert scene.label == class_of(world, index)
    assert sum(group.rank < 2 for group in scene.groups) >= 2
    for group in scene.groups:
        assert group.kind in PAINTERS or group.kind in TEXTURE_KINDS
        assert group.rank == 2 or group.kind in MASS or group.kind in NOUNS[world.name]
        for item in group.items:
            if group.counted and not item.points and group.rank < 2:
                assert 0 <= item.x <= FRAME
                assert 0 <= item.y <= FRAME
        if group.counted and group.position:
            assert group.position == position_of([(i.x, i.y) for i in group.items])
        if group.colour and group.kind not in TEXTURE_KINDS:
            assert {i.colour for i in group.items} <= {group.colour}
    for relation in scene.relations:
        assert relation.subject != relation.object
        assert max(relation.subject, relation.object) < len(scene.groups)


def test_compass_names():
    assert [compass(a) for a in (0, 44, 90, 180, 270, -45)] == [
        "east", "south-east", "south", "west", "north", "north-east",
    ]  # fmt: skip
    assert [direction_of(a) for a in (0, 45, 90, 135, 180, 271)] == [
        "east-west", "northwest-southeast", "north-south", "northeast-southwest", "east-west", "north-south",
    ]  # fmt: skip
    assert position_of([(10, 10), (20, 20)]) == "north-west"
    assert position_of([(64, 110)]) == "south"
    assert position_of([(60, 68)]) == "centre"
    assert position_of([(5, 64), (120, 64)]) is None


def test_classes():
    assert len(CLASSES) == len(set(CLASSES)) == 30
    assert set(CLASSES) < set(LAYOUTS)
    assert set(HELD_OUT) == set(CLASSES) - set(PRETRAIN.classes)
    assert len(HELD_OUT) == len(CLASSES) // 3
    assert {describe(PRETRAIN, 0, i).label for i in range(72)} == {*PRETRAIN.classes, None}


def test_default_splits_are_balanced_and_disjoint():
    splits = read_scenes()
    assert {name: len(split.images) for name, split in splits.items()} == {"train": 1200, "val": 240, "test": 240}
    names = [image.name for split in splits.values() for image in split.images]
    assert len(names) == len(set(names))
    for split in splits.values():
        assert split.classes == CLASSES
        assert split.labels is not None
        assert set(np.bincount(split.labels)) == {len(split.images) // 30}
        assert len(split.captions) == 5 * len(split.images)
        assert all(split.images[k].name.startswith(CLASSES[split.labels[k]].replace(" ", "_")) for k in range(60))
    repeated = 1 - len(splits["train"].distinct) / len(splits["train"].captions)
    assert 0.03 < repeated < 0.12  # as in the real sets, some captions fit several pictures
    assert Counter(splits["train"].captions).most_common(1)[0][1] < 20


def test_a_split_does_not_depend_on_the_size_of_another():
    small, large = read_scenes({"train": 30, "val": 0, "test": 30}), read_scenes({"train": 60, "val": 30, "test": 30})
    assert small["test"].sha256 == large["test"].sha256
    assert small["train"].captions == large["train"].captions[:150]
    assert small["val"].images == ()
    assert read_scenes({"train": 30, "seed": 1, "val": 0, "test": 0})["train"].sha256 != small["train"].sha256


def test_pretrain_marks_collages():
    train = read_scenes({"world": "pretrain", "train": 72, "val": 0, "test": 0})["train"]
    assert train.labels is not None
    assert (train.labels == -1).sum() == 32
    assert train.images[20].name == "collage_20"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"train": -1}, ["train", "-1", "greater than or equal to 0"]),
        ({"test": STRIDE + 1}, ["test", str(STRIDE)]),
        ({"val": 2.5}, ["val", "2.5", "integer"]),
        ({"seed": -3}, ["seed", "-3"]),
        ({"world": "mars"}, ["world", "mars", "scenes", "pretrain"]),
        ({"tran": 3}, ["tran", "train"]),
    ],
)
def test_a_bad_option_is_named(options, parts):
    with pytest.raises(DataError) as caught:
        read_scenes(options)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="seed=-1"):
        describe(SCENES, -1, 0)
    with pytest.raises(ValueError, match="choose one of: scenes, pretrain"):
        world_named("moon")


def test_image_reference():
    image = SceneImage("scenes", 0, 27)
    assert isinstance(image, ImageRef)
    assert image.name == "storage_tanks_27"
    picture = image.open()
    assert (picture.mode, picture.size) == ("RGB", (NATIVE_SIZE, NATIVE_SIZE))
    others = [SceneImage("scenes", 0, 28), SceneImage("scenes", 1, 27), SceneImage("pretrain", 0, 27)]
    assert len({i.content() for i in [image, *others]}) == len({i.fingerprint() for i in [image, *others]}) == 4
    assert pickle.loads(pickle.dumps(image)) == image
    assert len(pickle.dumps(image)) < 200


@pytest.mark.parametrize("size", [64, 224, 336])
def test_other_sizes_show_the_same_scene(size):
    native = np.asarray(render(SCENES, 0, 26).resize((32, 32)), dtype=float)
    other = np.asarray(render(SCENES, 0, 26, size).resize((32, 32)), dtype=float)
    assert np.corrcoef(native.ravel(), other.ravel())[0, 1] > 0.95


def test_the_worlds_differ_in_pixels_and_words():
    pixels = {w.name: np.stack([np.asarray(render(w, 0, i)) for i in range(36)]).astype(float) for w in WORLDS.values()}
    spread = {name: stack.mean(axis=(1, 2, 3)).std() for name, stack in pixels.items()}
    assert spread["pretrain"] > spread["scenes"]  # wider range of sensors
    said = {w.name: [c for i in range(180) for c in captions(describe(w, 0, i))] for w in WORLDS.values()}
    common = set(said["scenes"]) & set(said["pretrain"])
    assert len(common) < 0.06 * len(said["scenes"])
    vocabulary = {name: set(re.findall(r"[a-z-]+", " ".join(texts).lower())) for name, texts in said.items()}
    shared = vocabulary["scenes"] & vocabulary["pretrain"]
    assert 0.6 < len(shared) / len(vocabulary["scenes"]) < 1
    assert vocabulary["pretrain"] - vocabulary["scenes"] >= {"aircraft", "vehicles", "homes", "silver"}


def test_pictures_of_a_class_differ():
    for place in range(0, 30, 6):
        stack = [np.asarray(render(SCENES, 0, place + 30 * k), dtype=float) for k in range(3)]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert np.abs(stack[a] - stack[b]).mean() > 8
