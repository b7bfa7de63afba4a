"""Perceptual hashes: those of the field, found again after what happens to copies, and quick for a whole set."""

import io

import numpy as np
import pytest
from data_files import write_picture
from PIL import Image, ImageEnhance
from support import shared_path

from petlbench.datasets.perceptual import (
    SIDE,
    Prints,
    hashes,
    near_pairs,
    prints,
    thumbnail,
    turned,
)
from petlbench.datasets.split import FileImage


def picture(seed, size=128):
    """Blobs of several sizes, the larger the stronger, as in pictures."""
    rng, whole = np.random.default_rng(seed), np.zeros((size, size, 3))
    for blobs in (3, 6, 12, 24):
        pixels = Image.fromarray(rng.integers(0, 256, (blobs, blobs, 3), dtype=np.uint8))
        whole += np.asarray(pixels.resize((size, size), Image.Resampling.BICUBIC), dtype=float) / blobs
    return Image.fromarray((whole * 255 / whole.max()).astype(np.uint8))


def stored_again(one, quality=65, side=96):
    buffer = io.BytesIO()
    one.resize((side, side)).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def prints_of(*pictures):
    return Prints.of([thumbnail(one) for one in pictures])


def test_hashes_are_those_of_the_usual_library():
    """Strings that ``imagehash.phash`` (ImageHash 4.3.2) gives for these pictures, which are computed without chance."""
    y, x = np.mgrid[0:96, 0:128]
    waves = 127 + 80 * np.sin(x / 9) * np.cos(y / 17) + 40 * np.sin((x + y) / 31)
    rings = 255 * (np.hypot(x - 40, y - 60) % 32 < 16)
    found = []
    for grey in (waves, rings):
        grey = grey.round().astype(np.uint8)
        one = Image.fromarray(np.stack([grey, grey[::-1], 255 - grey], axis=-1))
        found.append(f"{int(prints_of(one).hashes[0]):016x}")
    assert found == ["e727b8f898f89818", "fded10dc3bc4c806"]


@pytest.mark.parametrize(
    ("change", "turn"),
    [
        (stored_again, 0),
        (lambda one: ImageEnhance.Brightness(stored_again(one)).enhance(1.1), 0),
        (lambda one: one.crop((2, 2, 126, 126)), 0),
        (lambda one: stored_again(one.rotate(90)), 3),
        (lambda one: stored_again(one.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), 4),
    ],
)
def test_altered_copies_are_found_among_others(change, turn):
    originals = [picture(seed) for seed in range(12)]
    (pair,) = near_pairs(
        prints_of(*originals), prints_of(*[picture(seed) for seed in range(50, 54)], change(originals[7]))
    )
    assert (pair.first, pair.second, pair.turn) == (7, 4, turn)
    assert pair.distance <= 8 and 0.6 <= pair.correlation <= 1


def test_turns_are_only_looked_for_where_asked():
    one = picture(1)
    copy = prints_of(one.rotate(180))
    assert near_pairs(prints_of(one), copy)[0].turn == 2
    assert near_pairs(prints_of(one), copy, turns=1) == []


def test_all_orientations_are_different_and_turn_back():
    small = thumbnail(picture(3))[None]
    seen = {turned(small, turn).tobytes() for turn in range(8)}
    assert len(seen) == 8
    assert np.array_equal(turned(turned(small, 1), 3), small) and np.array_equal(turned(turned(small, 4), 4), small)


def test_pictures_of_one_colour_are_near_to_nothing():
    plain = [Image.new("RGB", (64, 64), colour) for colour in ("navy", "navy", "white")]
    assert near_pairs(prints_of(*plain)) == []


def test_pairs_within_a_set_come_once_and_in_order():
    one, two = picture(1), picture(2)
    found = near_pairs(prints_of(one, two, one, two, one))
    assert [(pair.first, pair.second) for pair in found] == [(0, 2), (0, 4), (1, 3), (2, 4)]
    assert {pair.distance for pair in found} == {0}


def test_no_pictures_have_no_pairs():
    none = Prints.of([])
    assert len(none) == 0 and near_pairs(none) == [] and near_pairs(none, prints_of(picture(1))) == []


def test_blocks_do_not_change_what_is_found(monkeypatch):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (60, SIDE, SIDE), dtype=np.uint8)
    small[40:] = small[:20]
    whole = near_pairs(Prints.of(small))
    monkeypatch.setattr("petlbench.datasets.perceptual._BLOCK", 7)
    assert near_pairs(Prints.of(small)) == whole and len(whole) == 20
    bits = hashes(small)
    distance = np.array([[int(a ^ b).bit_count() for b in bits.tolist()] for a in bits.tolist()])
    loose = near_pairs(Prints.of(small), distance=24, correlation=-1, turns=1)
    assert {(p.first, p.second, p.distance) for p in loose} == {
        (i, j, distance[i, j]) for i in range(60) for j in range(i + 1, 60) if distance[i, j] <= 24
    }


def test_prints_are_taken_from_files_in_order(tmp_path):
    images = [FileImage(write_picture(tmp_path / f"{n}.png", n), f"{n}.png") for n in range(9)]
    seen = []
    taken = prints(images, workers=3, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (9, 9)
    assert all(np.array_equal(taken.thumbnails[n], thumbnail(image.open())) for n, image in enumerate(images))


def test_the_known_twins_of_ucm():
    folder = shared_path("data", "ucm_captions", "images")
    numbers = (101, 102, 103, 374, 375, 376, 377, 1729, 1749)
    taken = prints([FileImage(folder / f"{n}.jpg", str(n)) for n in numbers])
    assert [(numbers[p.first], numbers[p.second]) for p in near_pairs(taken)] == [(102, 103), (375, 376)]
