"""The affiliation loss of PIR."""

import pytest
import torch
from golden.fill import inputs
from pir_parts import SMALL, built, method_of
from torch.nn.functional import normalize

from petlbench.datasets.readers.common import label_of
from petlbench.harness.contract_data import fake_batch
from petlbench.methods import losses
from petlbench.methods.backbones.random_models import random_swin_bert

pytestmark = pytest.mark.usefixtures("one_thread")


def embeddings(rows=6, width=16):
    return inputs((rows, width), 1), inputs((rows, width), 2)


def test_affiliation_of_separated_classes_is_the_log_of_their_sizes():
    labels = torch.arange(4).repeat_interleave(8)
    points = torch.eye(4)[labels]
    found = losses.affiliation(points, points, torch.tensor(1000.0), labels)
    assert found.item() == pytest.approx(torch.tensor(8.0).log().item(), rel=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_affiliation_of_single_classes_is_infonce(transposed):
    image, text = embeddings()
    labels, scale = torch.arange(6), torch.tensor(10.0)
    expected = losses.infonce(scale * normalize(image, dim=-1) @ normalize(text, dim=-1).T)
    found = losses.affiliation(image, text, scale, labels, transposed=transposed)
    if transposed:  # both terms then have one and the same matrix
        logits = scale * normalize(image, dim=-1) @ normalize(text, dim=-1).T
        expected = torch.nn.functional.cross_entropy(logits, labels) / 2
        expected = expected + torch.nn.functional.cross_entropy(logits, labels) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_samples_without_a_class_take_no_part(transposed):
    image, text = embeddings()
    labels, scale = torch.tensor([0, -1, 1, 0, -1, 2]), torch.tensor(8.0)
    kept = labels >= 0
    found = losses.affiliation(image, text, scale, labels, transposed=transposed)
    alone = losses.affiliation(image[kept], text[kept], scale, labels[kept], transposed=transposed)
    assert found.item() == pytest.approx(alone.item(), rel=1e-6)
    image.requires_grad_()
    losses.affiliation(image, text, scale, labels).backward()
    assert image.grad[~kept].abs().max() == 0 and image.grad[kept].abs().min() > 0


def test_no_label_at_all_costs_nothing():
    image, text = embeddings()
    image.requires_grad_()
    found = losses.affiliation(image, text, torch.tensor(8.0), torch.full((6,), -1))
    found.backward()
    assert found.item() == 0 and image.grad.abs().max() == 0


def test_as_released_each_class_less_picture_is_a_class():
    labels, pictures = torch.tensor([3, -1, 0, -1, -1]), torch.tensor([0, 1, 2, 1, 4])
    found = losses.own_classes(labels, pictures)
    assert found.tolist() == [3, 5, 0, 5, 8]
    assert losses.own_classes(torch.full((3,), -1), torch.tensor([0, 1, 0])).tolist() == [0, 1, 0]


def test_numeric_names_of_rsicd_have_no_class():
    assert label_of("00578.jpg", "prefix") is None and label_of("airport_12.jpg", "prefix") == "airport"


def test_the_text_term_and_class_less_pictures_follow_the_switches():
    backbone = random_swin_bert()
    batch = fake_batch(backbone)
    found = {}
    for form, config in {
        "default": {},
        "transposed": {"text_term": "transposed"},
        "own": {"class_less": "own_class"},
    }.items():
        method = method_of(**SMALL, **config)
        model = built(method, random_swin_bert()).eval()
        found[form] = method.loss(model, batch)["affiliation"].item()
    assert len({round(v, 5) for v in found.values()}) == 3
