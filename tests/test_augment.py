"""Augmentation of uint8 batches: deterministic, different per sample, equal to torchvision where it has the like."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torchvision.transforms.v2 import functional as tv

from petlbench.datasets import crop, randaugment
from petlbench.datasets.augment import Augmentation, _crop, augment, normalise
from petlbench.datasets.randaugment import KINDS, RandAugment, rand_augment

EVERYTHING = Augmentation(
    random_resized_crop=(0.5, 1),
    horizontal_flip=0.5,
    vertical_flip=0.5,
    rotate90=0.5,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    randaugment=RandAugment(),
)


def batch(size: int = 8, side: int = 20, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, generator=generator)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_default_changes_nothing_and_draws_nothing():
    images, generator = batch(), chance()
    state = generator.get_state()
    assert Augmentation().is_identity
    assert augment(images, Augmentation(), generator) is images
    assert torch.equal(generator.get_state(), state)


def test_same_seed_same_pictures_and_the_input_stays():
    images = batch()
    before = images.clone()
    first = augment(images, EVERYTHING, chance(3))
    assert first.dtype == torch.uint8 and first.shape == images.shape
    assert torch.equal(first, augment(images, EVERYTHING, chance(3)))
    assert not torch.equal(first, augment(images, EVERYTHING, chance(4)))
    assert torch.equal(images, before)


@pytest.mark.parametrize("field", ["random_resized_crop", "brightness", "contrast", "saturation"])
def test_every_sample_gets_its_own_change(field):
    images = batch(1).repeat(6, 1, 1, 1)
    changed = augment(images, Augmentation(**{field: getattr(EVERYTHING, field)}), chance())
    assert len(torch.unique(changed.flatten(1), dim=0)) == 6


def test_a_sure_flip_is_a_flip():
    images = batch(side=21)
    assert torch.equal(augment(images, Augmentation(horizontal_flip=1), chance()), images.flip(-1))
    assert torch.equal(augment(images, Augmentation(vertical_flip=1), chance()), images.flip(-2))
    both = Augmentation(horizontal_flip=1, vertical_flip=1)
    assert torch.equal(augment(images, both, chance()), images.flip(-1, -2))


@pytest.mark.parametrize("side", [1, 7, 64, 224])
def test_turns_move_whole_pixels(side):
    images = batch(1, side).repeat(24, 1, 1, 1)
    turned = augment(images, Augmentation(rotate90=0.75), chance())
    kinds = [torch.rot90(images[0], k, (-2, -1)) for k in range(4)]
    found = [next(k for k in range(4) if torch.equal(picture, kinds[k])) for picture in turned]
    assert side == 1 or set(found) == {0, 1, 2, 3}


def test_flips_and_turns_together_stay_among_the_eight_symmetries():
    images = batch(1).repeat(64, 1, 1, 1)
    config = Augmentation(rotate90=0.75, horizontal_flip=0.5, vertical_flip=0.5)
    changed = augment(images, config, chance())
    kinds = [torch.rot90(base, k, (-2, -1)) for base in (images[0], images[0].flip(-1)) for k in range(4)]
    found = {next(k for k in range(8) if torch.equal(picture, kinds[k])) for picture in changed}
    assert found == set(range(8))


@pytest.mark.parametrize(("name", "share"), [("horizontal_flip", 0.3), ("vertical_flip", 0.8), ("rotate90", 0.6)])
def test_probabilities_are_kept(name, share):
    images = batch(1, 4).repeat(4000, 1, 1, 1)
    changed = augment(images, Augmentation(**{name: share}), chance()) != images
    assert changed.flatten(1).any(1).float().mean().item() == pytest.approx(share, abs=0.03)


@given(st.floats(0.05, 1), st.floats(0, 1), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_crops_lie_inside_and_keep_area_and_shape(least, span, seed):
    scale, ratio = (least, least + span * (1 - least)), (3 / 4, 4 / 3)
    size, centre = _crop(64, scale, ratio, chance(seed))
    assert (size > 0).all() and (size <= 1).all()
    assert ((centre.abs() + size) <= 1 + 1e-6).all()
    fits = (size < 1).all(-1)
    area, shape = size.prod(-1)[fits], (size[:, 0] / size[:, 1])[fits]
    assert ((area >= scale[0] - 1e-5) & (area <= scale[1] + 1e-5)).all()
    assert ((shape >= ratio[0] - 1e-5) & (shape <= ratio[1] + 1e-5)).all()


def test_a_crop_of_everything_is_the_picture():
    images = batch()
    config = Augmentation(random_resized_crop=(1, 1), crop_ratio=(1, 1))
    assert (augment(images, config, chance()).int() - images.int()).abs().max() <= 1


def test_a_crop_shows_that_part_of_the_picture():
    # A ramp stays a ramp under a crop: its step shrinks by the crop's width.
    ramp = torch.arange(0, 240, 4, dtype=torch.uint8).expand(4, 3, 60, 60)
    config = Augmentation(random_resized_crop=(0.25, 0.25), crop_ratio=(1, 1))
    rows = augment(ramp, config, chance()).float()[:, 0, 30, 5:-5]
    assert rows.diff(dim=-1).mean(-1) == pytest.approx(torch.full((4,), 2.0), abs=0.05)
    assert (rows.min(1).values >= 0).all() and len(rows[:, 0].unique()) > 1


def boxes(size, side):
    drawn = _crop(size, (0.1, 1), (3 / 4, 4 / 3), chance())
    return crop.whole_boxes(*drawn, side)


@given(st.integers(1, 40), st.integers(0, 100))
@settings(max_examples=50, deadline=None)
def test_boxes_hold_whole_pixels_inside_the_picture(side, seed):
    first, extent = crop.whole_boxes(*_crop(64, (0.001, 1), (3 / 4, 4 / 3), chance(seed)), side)
    assert (extent >= 1).all() and (first >= 0).all() and (first + extent <= side).all()


def test_crops_equal_torchvision():
    images, (first, extent) = batch(8, 56), boxes(8, 56)
    for found in (crop.each(images, first, extent), crop.batched(images, first, extent)):
        for picture, got, (left, top), (width, height) in zip(
            images, found, first.tolist(), extent.tolist(), strict=True
        ):
            expected = tv.resized_crop(picture, top, left, height, width, [56, 56], tv.InterpolationMode.BICUBIC)
            assert (got.int() - expected.int()).abs().max() <= 2  # the kernel for CPUs has integer weights


def test_both_ways_to_crop_agree():
    images = batch(16, 60)
    one, other = (way(images, *boxes(16, 60)).int() for way in (crop.each, crop.batched))
    assert (one - other).abs().max() <= 2 and (one - other).abs().float().mean() < 0.1


@pytest.mark.parametrize(
    ("name", "counterpart"),
    [("brightness", tv.adjust_brightness), ("contrast", tv.adjust_contrast), ("saturation", tv.adjust_saturation)],
)
def test_colour_changes_equal_torchvision(name, counterpart):
    images = batch(6)
    changed = augment(images, Augmentation(**{name: 0.6}), chance(5))
    factors = 1 + 0.6 * (2 * torch.rand(6, generator=chance(5)) - 1)
    for picture, got, factor in zip(images, changed, factors, strict=True):
        expected = counterpart(picture.float() / 255, factor.item()) * 255
        assert (got.float() - expected).abs().max() <= 0.51  # rounding only


def test_normalise_equals_torchvision():
    images = batch()
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    expected = tv.normalize(tv.to_dtype(images, torch.float32, scale=True), list(mean), list(std))
    assert torch.allclose(normalise(images, mean, std), expected, atol=2e-6)
    lasting = images.contiguous(memory_format=torch.channels_last)
    assert normalise(lasting, mean, std).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(normalise(lasting, mean, std), normalise(images, mean, std))
    assert normalise(images, mean, std, torch.bfloat16).dtype == torch.bfloat16


def test_an_empty_batch_passes():
    assert augment(batch(0), EVERYTHING, chance()).shape == (0, 3, 20, 20)


@pytest.mark.parametrize("images", [batch().float(), batch()[0], batch()[:, :1], batch()[:, :, :10]])
def test_wrong_pictures_are_refused(images):
    with pytest.raises(ValueError, match=r"expects uint8 pictures \(B, 3, R, R\), found torch"):
        augment(images, EVERYTHING, chance())


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"horizontal_flip": 1.5}, "horizontal_flip"),
        ({"random_resized_crop": (0.9, 0.5)}, "least <= greatest"),
        ({"random_resized_crop": (0, 0.5)}, "0 < least"),
        ({"crop_ratio": (2, 1)}, "crop_ratio"),
        ({"flip": 1}, "flip"),
    ],
)
def test_wrong_settings_are_refused(values, told):
    with pytest.raises(ValidationError, match=told):
        Augmentation(**values)


# --- RandAugment ---


def every_kind(images):
    """One round that always happens; which kind befell which picture."""
    config = RandAugment(ops=1, probability=1)
    drawn = torch.rand(3, len(images), generator=chance(1))
    return rand_augment(images, config, chance(1)), (drawn[0] * len(KINDS)).long(), torch.where(drawn[2] < 0.5, -1, 1)


def smooth(size=200, side=56):
    """Pictures without a step larger than a few levels, of less than full range."""
    coarse = 40 + 160 * torch.rand(size, 3, 5, 5, generator=chance(2))
    return torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(20, 235).to(torch.uint8)


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_does_what_it_is_called(name):
    images = smooth()
    changed, kinds, signs = every_kind(images)
    rows = [i for i in range(len(images)) if kinds[i] == KINDS.index(name)]
    assert len(rows) >= 8
    counterparts = {
        "identity": lambda x, sign: x,
        "autocontrast": lambda x, sign: tv.autocontrast(x),
        "equalize": lambda x, sign: tv.equalize(x),
        "brightness": lambda x, sign: tv.adjust_brightness(x, 1.36),
        "sharpness": lambda x, sign: tv.adjust_sharpness(x, 1.36),
        "shear_x": lambda x, sign: moved(x, [[1, 0.21 * sign, 0], [0, 1, 0]]),
        "shear_y": lambda x, sign: moved(x, [[1, 0, 0], [0.21 * sign, 1, 0]]),
        "translate_x": lambda x, sign: moved(x, [[1, 0, -1.75 * sign], [0, 1, 0]]),
        "translate_y": lambda x, sign: moved(x, [[1, 0, 0], [0, 1, -1.75 * sign]]),
        "rotate": lambda x, sign: moved(x, turn(math.radians(21) * sign, 28)),
    }
    for row in rows:
        expected = counterparts[name](images[row], signs[row])
        assert (changed[row].int() - expected.int()).abs().max() <= 1, (name, row)


def turn(angle, middle):
    """Counter-clockwise about a place; y points down."""
    sine, cosine = math.sin(angle), math.cos(angle)
    return [
        [cosine, sine, middle * (1 - cosine - sine)],
        [-sine, cosine, middle * (1 - cosine + sine)],
    ]


def moved(picture, forward):
    """Pillow's look-up through the inverse of a map of places; pixel centres at whole numbers, grey outside."""
    import numpy as np
    from PIL import Image

    inverse = np.linalg.inv(np.vstack([np.array(forward, dtype=float), [0, 0, 1]]))
    side = picture.shape[-1]
    padded = torch.full((3, 3 * side, 3 * side), 128, dtype=torch.uint8)
    padded[:, side : 2 * side, side : 2 * side] = picture
    # Pillow counts from corners, and leaves a border that it cannot interpolate; hence the margin of grey.
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    margin = np.array([[1, 0, side], [0, 1, side], [0, 0, 1]])
    place = half @ margin @ inverse @ np.linalg.inv(margin) @ np.linalg.inv(half)
    done = Image.fromarray(padded.permute(1, 2, 0).numpy()).transform(
        (3 * side, 3 * side), Image.Transform.AFFINE, tuple(place[:2].ravel()), Image.Resampling.BILINEAR
    )
    return torch.from_numpy(np.array(done)).permute(2, 0, 1)[:, side : 2 * side, side : 2 * side]


def test_a_flat_channel_and_a_tiny_picture_survive_every_kind():
    flat = torch.full((64, 3, 9, 9), 200, dtype=torch.uint8)
    changed, kinds, _ = every_kind(flat)
    for name in ("identity", "autocontrast", "equalize", "sharpness"):
        assert changed[kinds == KINDS.index(name)].eq(200).all()
    assert changed[kinds == KINDS.index("brightness")].eq(255).all()
    for side in (1, 2, 3):
        assert rand_augment(batch(32, side), RandAugment(ops=4, probability=1), chance()).shape == (32, 3, side, side)


def test_sharpening_never_wraps_around():
    # A white dot on black and a black dot on white are driven beyond the range.
    pictures = torch.zeros(2, 3, 5, 5, dtype=torch.uint8)
    pictures[0, :, 2, 2], pictures[1] = 255, 255
    pictures[1, :, 2, 2] = 0
    sharp = randaugment._sharpness(pictures, 1.36)
    assert sharp[0, :, 2, 2].eq(255).all() and sharp[1, :, 2, 2].eq(0).all()
    assert sharp[0, 0, 1, 1] == 0 and sharp[1, 0, 1, 1] == 255


def test_kinds_and_changes_come_as_often_as_asked():
    images = smooth(1, 24).repeat(4000, 1, 1, 1)
    changed = rand_augment(images, RandAugment(ops=1, probability=0.5), chance(3)) != images
    assert changed.flatten(1).any(1).float().mean().item() == pytest.approx(0.5 * 0.9, abs=0.03)
    untouched = RandAugment(ops=2, probability=0)
    assert rand_augment(images, untouched, chance()).equal(images)
    assert Augmentation(randaugment=untouched).is_identity and not Augmentation(randaugment=RandAugment()).is_identity


def test_the_way_of_a_gpu_gives_the_same_pictures():
    images = batch(64, 24)
    config = RandAugment(ops=3, probability=0.8)
    sparse, dense = (rand_augment(images, config, chance(4), sparse=way) for way in (True, False))
    assert sparse.equal(dense)


def test_shifts_are_in_proportion_to_the_picture():
    ramp = torch.arange(56, dtype=torch.uint8).mul(4).expand(1, 3, 56, 56)
    kind = torch.tensor([KINDS.index("translate_x")])
    for side, step in ((224, 7.0), (56, 1.75)):
        assert randaugment._maps(kind, torch.tensor([0.7]), side)[0, 0, 2].item() == pytest.approx(step)
    found = randaugment._moved(ramp, randaugment._maps(kind, torch.tensor([0.7]), 56))
    assert found[0, 0, 0, :5].tolist() == [7, 11, 15, 19, 23]


@pytest.mark.parametrize("values", [{"magnitude": 11}, {"probability": 2}, {"ops": -1}, {"level": 3}])
def test_wrong_rounds_are_refused(values):
    with pytest.raises(ValidationError, match=next(iter(values))):
        RandAugment(**values)
