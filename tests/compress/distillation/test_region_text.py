"""Regions are placed among the classes' texts: the losses are zero where they should be, and learning gets there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hashed_words import hashed_words
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.compress.distillation.text import class_texts

torch = pytest.importorskip("torch")
region_text = pytest.importorskip("edgekd.compress.distillation.region_text")
boxes_ = pytest.importorskip("edgekd.compress.distillation.anchors")

TEXTS = torch.tensor(class_texts(("red car", "blue car", "dog", "tree"), hashed_words))
seeds = st.integers(0, 10_000)


def unit(*shape: int, seed: int = 0) -> object:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


def test_a_region_is_the_mean_of_the_maps_over_its_box() -> None:
    fine, coarse = torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 4, 4)
    fine[1, 2, 2:4, 4:8] = 5.0
    coarse[1, 0, 1, 2:4] = 7.0
    pooled = region_text.pool_regions(
        [fine, coarse], (8, 16), torch.tensor([[32.0, 16, 64, 32], [32.0, 16, 64, 32]]), torch.tensor([1, 0])
    )
    assert pooled.shape == (2, 4)
    assert pooled[1].tolist() == [0, 0, 0, 0]
    assert pooled[0, :2].tolist() == [0, 0]
    assert pooled[0, 2] == pytest.approx(5, rel=0.3)  # at its edges RoIAlign reads between cells
    assert pooled[0, 3] == pytest.approx(7, rel=0.3)


def test_a_constant_map_is_that_constant_in_every_box() -> None:
    pooled = region_text.pool_regions(
        [torch.full((1, 2, 8, 8), 3.0)], (8,), torch.tensor([[3.0, 5, 17, 40]]), torch.tensor([0])
    )
    assert pooled == pytest.approx(np.full((1, 2), 3.0))


def test_the_contrastive_loss_is_least_at_the_right_text() -> None:
    labels = torch.arange(4)
    right = region_text.contrastive_loss(100 * TEXTS @ TEXTS.T, labels)
    assert 0 <= right < 1e-3
    assert region_text.contrastive_loss(100 * TEXTS.roll(1, 0) @ TEXTS.T, labels) > 10


def test_weights_say_which_classes_count() -> None:
    logits = torch.zeros(3, 4)
    labels = torch.tensor([0, 0, 1])
    assert region_text.contrastive_loss(logits, labels) == pytest.approx(math.log(4))
    weighed = region_text.contrastive_loss(logits, labels, torch.tensor([1.0, 7.0, 1.0, 1.0]))
    assert weighed == pytest.approx(math.log(4) * 9 / 3)


@settings(deadline=None)
@given(seeds, st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_relations_are_matched_by_any_turned_copy_of_the_texts(seed: int, labels: list[int]) -> None:
    """What counts is how classes relate, not where they are: an orthogonal turn changes nothing, and noise does."""
    turn, _ = torch.linalg.qr(unit(64, 64, seed=seed))
    wanted = torch.tensor(labels)
    regions = (TEXTS @ turn)[wanted]
    assert region_text.relation_loss(regions, wanted, TEXTS) == pytest.approx(0, abs=1e-9)
    noise = unit(len(labels), 64, seed=seed)
    if len(set(labels)) > 1:
        assert region_text.relation_loss(noise, wanted, TEXTS) > 1e-6


def test_a_batch_without_objects_has_no_loss_and_can_be_trained_on() -> None:
    words = region_text.RegionText((3,), TEXTS)
    none = torch.zeros(0, dtype=torch.int64)
    regions = words([torch.rand(1, 3, 8, 8)], (8,), torch.zeros(0, 4), none)
    loss = region_text.contrastive_loss(words.logits(regions), none) + region_text.relation_loss(regions, none, TEXTS)
    loss.backward()
    assert loss == 0
    weights = region_text.modality_weights(region_text.confidence(words.logits(regions)), torch.zeros(0))
    assert [float(weight) for weight in weights] == [1, 1]


def test_learning_puts_regions_at_their_texts() -> None:
    """Four colours of patches stand for the four classes; the projection and the map's layer learn."""
    torch.manual_seed(0)
    words, neck = region_text.RegionText((8,), TEXTS), torch.nn.Conv2d(4, 8, 1)
    image = torch.zeros(1, 4, 8, 8)
    boxes = torch.tensor([[0.0, 0, 32, 32], [32, 0, 64, 32], [0, 32, 32, 64], [32, 32, 64, 64]])
    for at, (x, y) in enumerate(((0, 0), (4, 0), (0, 4), (4, 4))):
        image[0, at, y : y + 4, x : x + 4] = 1
    images, labels = torch.zeros(4, dtype=torch.int64), torch.arange(4)
    optimizer = torch.optim.Adam([*words.parameters(), *neck.parameters()], 0.02)
    found = []
    for _ in range(60):
        regions = words([neck(image)], (8,), boxes, images)
        logits = words.logits(regions)
        parts = region_text.contrastive_loss(logits, labels), region_text.relation_loss(regions, labels, TEXTS)
        found.append([float(part.detach()) for part in parts])
        optimizer.zero_grad()
        sum(parts).backward()
        optimizer.step()
    assert found[-1][0] < 0.1 < found[0][0]
    assert found[-1][1] < 0.2 * found[0][1]
    assert logits.argmax(dim=1).tolist() == [0, 1, 2, 3]
    assert float(region_text.confidence(logits).mean()) > 0.8


def test_confidence_goes_from_even_to_certain() -> None:
    assert region_text.confidence(torch.zeros(2, 5)) == pytest.approx([0, 0], abs=1e-6)
    assert region_text.confidence(torch.tensor([[0.0, 100.0]])) == pytest.approx([1])
    assert region_text.confidence(torch.zeros(1, 1)).tolist() == [1]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0, 1))
def test_the_surer_side_weighs_more(text: list[float], teacher: float) -> None:
    ours, theirs = torch.tensor(text, requires_grad=True), torch.full((len(text),), teacher)
    by_text, by_teacher = (weight.item() for weight in region_text.modality_weights(ours, theirs))
    assert by_text + by_teacher == pytest.approx(2)
    assert 0.23 < by_text < 1.77
    surer = ours.mean().item() - teacher
    assert abs(surer) < 1e-6 or (by_text > by_teacher) == (surer > 0)


def test_doubt_cannot_be_learned() -> None:
    sure = torch.tensor([0.5], requires_grad=True)
    assert not any(weight.requires_grad for weight in region_text.modality_weights(sure, torch.ones(1)))
    assert not region_text.confidence(torch.zeros(1, 3, requires_grad=True)).requires_grad


GRID = torch.tensor([[4.0, 12, 4, 12], [4.0, 4, 12, 12]])
"""Four anchors of stride 8 in 16 x 16 pixels."""


def test_the_best_value_in_a_box_is_found() -> None:
    values = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.8, 0.7, 0.6, 0.5]])
    boxes = torch.tensor([[0.0, 0, 16, 16], [8, 0, 16, 16], [0, 0, 16, 7], [5, 5, 6, 6]])
    assert boxes_.best_inside(values, GRID, boxes, torch.tensor([0, 1, 1, 0])).tolist() == pytest.approx(
        [0.4, 0.7, 0.8, 0]
    )


def test_ignored_boxes_leave_out_their_class_in_their_place() -> None:
    boxes = torch.tensor([[0.0, 0, 16, 7], [0, 0, 7, 16], [8, 8, 16, 16]])
    mask = boxes_.ignored(GRID, boxes, torch.tensor([0, 0, 1]), torch.tensor([2, 2, 0]), batch=2, classes=3)
    assert mask.shape == (2, 3, 4)
    assert mask[0, 2].tolist() == [True, True, True, False]
    assert mask[1, 0].tolist() == [False, False, False, True]
    assert mask.sum() == 4
