"""Layers as products of thinner ones: what they compute, what they keep, and which ranks are worth it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.compress.pruning import Convolution, multiply_adds

torch = pytest.importorskip("torch")

from torch.nn import functional  # noqa: E402

from edgekd.compress.low_rank import (  # noqa: E402
    MAX_RELATIVE_COST,
    RANK_MULTIPLE,
    InputMoments,
    InputStatistics,
    Ranks,
    WeightedLayer,
    choose,
    default_cost,
    merged,
    parts,
)

SHAPES = [(40, 24, 3, 3), (24, 40, 1, 1), (24, 40, 5, 3), (24, 40)]


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth_maps(channels: int, count: int = 3, side: int = 24, seed: int = 0) -> Any:
    """Maps [count, channels, side, side] with a mean, whose channels go together, and whose neighbours are alike."""
    noise = random(count, channels, side + 4, side + 4, seed=seed)
    mixed = torch.einsum("ij,bjhw->bihw", random(channels, channels, seed=7), noise) * torch.logspace(0, -2, channels)[
        :, None, None
    ].to(noise)
    return functional.avg_pool2d(mixed, 5, 1) + 0.3 * random(channels, 1, 1, seed=3)


def read_from(maps: Any, kernel: Sequence[int] = (1, 1)) -> InputMoments:
    watch = InputStatistics(maps.shape[1], tuple(kernel) or (1, 1))  # type: ignore[arg-type]
    watch.add(maps)
    return watch.moments()


def plain(channels: int, places: int) -> InputMoments:
    """As if nothing were known of what is read."""
    eye = torch.eye(channels, dtype=torch.float64)
    return InputMoments(torch.zeros(channels, dtype=torch.float64), eye, torch.eye(places, dtype=torch.float64))


def written(maps: Any, weight: Any) -> Any:
    """What a convolution writes where it sees no border: [O, positions], float64."""
    return functional.conv2d(maps.double(), weight.double()).transpose(0, 1).flatten(1)


def share_kept(maps: Any, weight: Any, other: Any) -> float:
    whole = written(maps, weight)
    lost = (whole - written(maps, other)).square().mean()
    return 1 - float(lost / (whole - whole.mean(1, keepdim=True)).square().mean())


# ------------------------------------------------------------------------------------------------ what is computed


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_layer_of_low_rank_is_the_product_of_its_factors(shape: tuple[int, ...]) -> None:
    ends = [1] * len(shape[2:])
    shapes = [(16, shape[1], *ends), (16, 16, *shape[2:]), (shape[0], 16, *ends)]
    made = [random(*each, seed=seed) for seed, each in enumerate(shapes)]
    weight = merged(made)
    assert weight.shape == shape
    read = read_from(smooth_maps(shape[1]), shape[2:])
    pointwise = shape[2:] in ((), (1, 1))
    for ranks in [Ranks(16, shape[0])] if pointwise else [Ranks(16, 16), Ranks(16, shape[0]), Ranks(shape[1], 16)]:
        found = WeightedLayer(weight, read).products(ranks)
        assert len(found) == 1 + (ranks.reading < shape[1]) + (ranks.writing < shape[0])
        assert torch.allclose(merged(found), weight, rtol=1e-3, atol=1e-3)
        assert WeightedLayer(weight, read).keeps(found) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_at_full_rank_the_layer_itself_is_left(shape: tuple[int, ...]) -> None:
    weight = random(*shape)
    (found,) = WeightedLayer(weight, read_from(smooth_maps(shape[1]), shape[2:])).products(Ranks(shape[1], shape[0]))
    assert torch.equal(found, weight)


@pytest.mark.parametrize("ranks", [Ranks(16, 16), Ranks(16, 40), Ranks(24, 16)], ids=str)
def test_layers_one_after_the_other_compute_what_their_product_does(ranks: Ranks) -> None:
    weight, maps = random(40, 24, 3, 3), smooth_maps(24)
    found = WeightedLayer(weight, read_from(maps, (3, 3))).products(ranks)
    assert [part.shape[2:] for part in found].count((3, 3)) == 1
    how = {"stride": 2, "padding": 2, "dilation": 2}
    wanted = functional.conv2d(maps, merged(found), **how)
    for part in found:
        maps = functional.conv2d(maps, part, **(how if part.shape[2:] == (3, 3) else {}))
    assert torch.allclose(maps, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_what_is_handed_on_has_the_same_power_in_each_channel() -> None:
    maps, weight = smooth_maps(40), random(24, 40, 1, 1)
    first, _ = WeightedLayer(weight, read_from(maps)).products(Ranks(16, 24))
    between = written(maps, first)
    moment = between @ between.T / between.shape[1] / maps.square().mean()
    assert torch.allclose(moment, torch.eye(16, dtype=torch.float64), atol=1e-2), "that of what is read"
    # With the writing end apart, too, as far as patches are what they are taken for.
    maps, weight = smooth_maps(24, side=64), random(40, 24, 3, 3)
    *firsts, _ = WeightedLayer(weight, read_from(maps, (3, 3))).products(Ranks(16, 16))
    power = written(maps, merged(firsts)).square().mean(1) / written(maps, weight).square().mean()
    assert 0.5 < float(power.min()) <= float(power.max()) < 2


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_products_of_any_scale_fit_half_precision(scale: float) -> None:
    maps, weight = smooth_maps(24), random(40, 24, 3, 3)
    weighed = WeightedLayer(weight, read_from(maps * scale, (3, 3)))
    found = weighed.products(Ranks(16, 16))
    assert weighed.keeps([part.half().float() for part in found]) == pytest.approx(weighed.keeps(found), abs=1e-3)


# -------------------------------------------------------------------------------------------------- what is kept


def test_of_1_x_1_what_is_kept_is_what_is_measured_and_no_product_keeps_more() -> None:
    maps, weight = smooth_maps(40), random(24, 40, 1, 1)
    weighed = WeightedLayer(weight, read_from(maps))
    whole = written(maps, weight)
    varied = float((whole - whole.mean(1, keepdim=True)).square().sum())
    spectrum = torch.linalg.eigvalsh(whole @ whole.T)  # principal components of the output: the best there is
    for rank in (8, 16):
        found = weighed.products(Ranks(rank, 24))
        kept = share_kept(maps, weight, merged(found))
        assert kept == pytest.approx(1 - float(spectrum[: 24 - rank].sum()) / varied, abs=1e-4)
        assert kept == pytest.approx(weighed.keeps(found), abs=1e-3)
        assert kept == pytest.approx(float(weighed.kept[-1, rank - 1]), abs=1e-3)


@pytest.mark.parametrize("shape", [(40, 24, 3, 3), (24, 40, 1, 1)], ids=str)
def test_knowing_what_is_read_keeps_more(shape: tuple[int, ...]) -> None:
    maps, weight = smooth_maps(shape[1]), random(*shape)
    ranks = Ranks(12, shape[0])
    other = plain(shape[1], shape[2] * shape[3])
    found = [merged(WeightedLayer(weight, read).products(ranks)) for read in (read_from(maps, shape[2:]), other)]
    informed, blind = (share_kept(maps, weight, each) for each in found)
    assert informed > blind + 0.02


def test_knowing_that_maps_are_smooth_keeps_more() -> None:
    maps, weight = smooth_maps(24), random(40, 24, 3, 3)
    read = read_from(maps, (3, 3))
    rough = InputMoments(read.mean, read.moment, torch.eye(9, dtype=torch.float64))
    smooth, without = (
        share_kept(maps, weight, merged(WeightedLayer(weight, each).products(Ranks(12, 12)))) for each in (read, rough)
    )
    assert smooth > without


def test_what_is_kept_of_k_x_k_is_about_what_is_measured() -> None:
    maps, weight = smooth_maps(24, side=64), random(40, 24, 3, 3)
    weighed = WeightedLayer(weight, read_from(maps, (3, 3)))
    for ranks in (Ranks(16, 16), Ranks(16, 40), Ranks(24, 16)):
        found = weighed.products(ranks)
        kept = weighed.keeps(found)
        assert share_kept(maps, weight, merged(found)) == pytest.approx(kept, abs=0.05)
        assert kept >= float(weighed.kept[ranks.writing - 1, ranks.reading - 1]) - 1e-6


def test_more_rank_keeps_more_and_all_keeps_all() -> None:
    kept = WeightedLayer(random(40, 24, 3, 3), read_from(smooth_maps(24), (3, 3))).kept
    assert kept.shape == (40, 24)
    assert (kept.diff(dim=0) >= -1e-9).all()
    assert (kept.diff(dim=1) >= -1e-9).all()
    assert float(kept[-1, -1]) == pytest.approx(1)


def test_outputs_that_count_for_more_are_kept_better() -> None:
    maps, weight = smooth_maps(40), random(24, 40, 1, 1)
    counts = torch.ones(24)
    counts[:4] = 20
    read, ranks = read_from(maps), Ranks(8, 24)
    errors = []
    for weighed in (WeightedLayer(weight, read, counts), WeightedLayer(weight, read)):
        lost = written(maps, weight) - written(maps, merged(weighed.products(ranks)))
        errors.append((float(lost[:4].square().mean()), float(lost[4:].square().mean())))
    assert errors[0][0] < 0.1 * errors[1][0]
    assert errors[0][1] > errors[1][1]


# ------------------------------------------------------------------------------------------------ what is watched


@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)], ids=str)
def test_a_watch_says_how_channels_and_places_go_together(dilation: tuple[int, int]) -> None:
    maps = smooth_maps(6, count=2, side=11)
    watch = InputStatistics(6, (2, 3), dilation)
    for each in maps:
        watch.add(each[None])
    read = watch.moments()
    flat = maps.transpose(0, 1).flatten(1).double()
    assert torch.allclose(read.mean, flat.mean(1), atol=1e-5)
    assert torch.allclose(read.moment, flat @ flat.T / flat.shape[1], rtol=1e-4, atol=1e-4)
    mean = float(flat.mean(1).square().sum())
    power = {}
    for down in (0, 1):
        for right in (-2, -1, 0, 1, 2):
            low, far = down * dilation[0], right * dilation[1]
            one = maps[:, :, : 11 - low, max(-far, 0) : 11 - max(far, 0)].double()
            other = maps[:, :, low:, max(far, 0) : 11 + min(far, 0)].double()
            power[down, right] = float((one * other).sum(1).mean()) - mean
    for one_place in range(6):
        for place in range(one_place, 6):
            lag = (place // 3 - one_place // 3, place % 3 - one_place % 3)
            wanted = power[lag] / power[0, 0]
            assert float(read.taps[one_place, place]) == pytest.approx(wanted, abs=1e-3)
            assert float(read.taps[place, one_place]) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_what_never_varies_breaks_nothing(value: float) -> None:
    maps = torch.full((2, 16, 9, 9), value)
    maps[:, :4] = smooth_maps(4, count=2, side=9)
    for shown, rank in ((maps, 8), (torch.full_like(maps, value), 8)):
        weighed = WeightedLayer(random(24, 16, 3, 3), read_from(shown, (3, 3)))
        assert all(torch.isfinite(part).all() for part in weighed.products(Ranks(rank, 16)))
        assert torch.isfinite(weighed.kept).all()
    assert torch.equal(read_from(torch.zeros(1, 4, 5, 5), (3, 3)).taps, torch.eye(9, dtype=torch.float64))


# ---------------------------------------------------------------------------------------------- what is worth it


def test_what_stands_for_a_layer_is_counted_where_it_runs() -> None:
    layer = Convolution(inputs=64, outputs=128, positions=100, kernel=9, stride=2)
    first, core, last = parts(layer, Ranks(16, 32))
    assert first == Convolution(64, 16, 400, 1), "before the stride"
    assert core == Convolution(16, 32, 100, 9, stride=2)
    assert last == Convolution(32, 128, 100, 1)
    assert parts(layer, Ranks(64, 128)) == (layer,)


LAYERS = st.builds(
    Convolution,
    inputs=st.integers(1, 8).map(lambda each: 8 * each + 4),
    outputs=st.integers(1, 8).map(lambda each: 8 * each),
    positions=st.sampled_from([25, 400, 6400]),
    kernel=st.sampled_from([1, 9]),
    stride=st.sampled_from([1, 2]),
)


@given(layer=LAYERS, energy=st.floats(0.3, 0.99), seed=st.integers(0, 99), charge=st.sampled_from([0.0, 1e5]))
@settings(max_examples=60, deadline=None)
def test_what_is_chosen_keeps_enough_costs_least_and_is_worth_it(
    layer: Convolution, energy: float, seed: int, charge: float
) -> None:
    def cost(part: Convolution) -> float:
        return part.multiply_adds + charge

    power = random(layer.outputs, layer.inputs, seed=seed).abs().double().sort(0, True)[0].sort(1, True)[0] ** 4
    kept = power.cumsum(0).cumsum(1) / power.sum()
    found = choose(layer, kept, energy, cost)
    writing = (
        [layer.outputs] if layer.kernel == 1 else [*range(RANK_MULTIPLE, layer.outputs, RANK_MULTIPLE), layer.outputs]
    )
    reading = [*range(RANK_MULTIPLE, layer.inputs, RANK_MULTIPLE), layer.inputs]
    enough = [Ranks(one, other) for one in reading for other in writing if float(kept[other - 1, one - 1]) >= energy]
    spent = {ranks: sum(map(cost, parts(layer, ranks))) for ranks in enough}
    if found is None:
        assert min(spent.values()) >= MAX_RELATIVE_COST * cost(layer) - 1e-6
        return
    assert found in enough
    assert spent[found] == pytest.approx(min(spent.values()))
    assert spent[found] < MAX_RELATIVE_COST * cost(layer)
    assert multiply_adds(parts(layer, found)) < layer.multiply_adds


def test_a_layer_that_costs_as_much_however_thin_is_left_alone() -> None:
    layer, kept = Convolution(64, 64, 400, 9), torch.ones(64, 64)
    assert choose(layer, kept, 0.9, lambda part: part.multiply_adds) == Ranks(8, 8)
    assert choose(layer, kept, 0.9, default_cost) in (Ranks(64, 8), Ranks(8, 64)), "one kernel more is enough"
    assert choose(layer, kept, 0.9, lambda part: 1.0) is None, "two kernels for one"
    small = Convolution(64, 64, 4, 9)
    assert choose(small, kept, 0.9, default_cost) is None
