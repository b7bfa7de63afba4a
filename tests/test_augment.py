"""Augmentation of uint8 batches: deterministic, different per sample, equal to torchvision where it has the like."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torchvision.transforms.v2 import functional as tv

from petlbench.datasets.augment import Augmentation, _crop, augment, normalise

EVERYTHING = Augmentation(
    random_resized_crop=(0.5, 1),
    horizontal_flip=0.5,
    vertical_flip=0.5,
    rotate90=0.5,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
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
