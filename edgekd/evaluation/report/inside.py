"""The sections on attention and on training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgekd.evaluation.analysis.types import Attention, Inside, Shown
from edgekd.evaluation.report import curves, pictures, text
from edgekd.evaluation.report.markup import Html, details, section, table, tag
from edgekd.evaluation.report.types import Training

NAMES = {
    "distill": "Training of the student",
    "quant_aware_distill": "Training of the quantized graph",
    "prune": "Training after pruning",
}


def attention_section(inside: Inside | None) -> Html:
    """Where both networks look in a few frames."""
    if inside is None or not inside.attention:
        return Html()
    why = (
        "Mean of |activation| over channels (Zagoruyko and Komodakis, 2017) of the layers that the heads read, from "
        "the finest to the coarsest: dark blue is least, yellow most, each picture on a scale of its own. Agreement is "
        "the correlation of both maps. The frames are those in which most was lost or gained; white boxes are what was "
        "lost."
    )
    return section("Attention", why, *(_frame(each) for each in inside.attention), id_="attention")


def _frame(each: Attention) -> Html:
    frame = tag("figure", _image(each.image, f"{each.frame}, the frame itself"), tag("figcaption", "The frame"))
    rows = (_layer(shown, each.frame) for shown in each.layers)
    return tag("article", tag("h3", each.frame), tag("div", frame, *rows, class_="looks"))


def _layer(shown: Shown, frame: str) -> Html:
    said = f"attention of {shown.layer} in {frame}"
    pair = [_image(shown.before, f"Before: {said}")]
    if shown.after is not None:
        pair.append(_image(shown.after, f"After: {said}"))
    told = text.MISSING if shown.agreement is None else f"{shown.agreement:.3f}"
    words = "before | after" if shown.after is not None else "before; what ships has no such layer"
    caption = tag("figcaption", tag("b", _name(shown.layer)), f": {words}, agreement {told}")
    return tag("figure", tag("div", *pair, class_="two"), caption)


def _name(tensor: str) -> str:
    """The layer that writes a tensor, without what exporters add to the names of modules."""
    return tensor.strip("/").removesuffix("_output_0").removesuffix("/Conv").removesuffix("/conv")


def _image(image: np.ndarray, alt: str) -> Html:
    source = pictures.data_uri(image)
    height, width = image.shape[:2]
    return tag("img", src=source, alt=alt, width=width, height=height, loading="lazy", decoding="async")


def training_section(trainings: Sequence[Training]) -> Html:
    """Curves of the losses and weights that trainings have logged."""
    if not trainings:
        return Html()
    why = "Means of each epoch, as the training logged them: losses before they are weighed, then the weights."
    return section("Training", why, *(_training(each) for each in trainings), id_="training")


def _training(each: Training) -> Html:
    name = NAMES.get(each.name, each.name)
    grids = [_grid("Losses", each.losses), _grid("Weights", each.weights)]
    columns = [(kind, key) for kind, rows in (("loss", each.losses), ("weight", each.weights)) for key in _keys(rows)]
    rows = [
        (
            str(at + 1),
            *(_number(_at(each.losses if kind == "loss" else each.weights, at, key)) for kind, key in columns),
        )
        for at in range(max(len(each.losses), len(each.weights)))
    ]
    heads = ("Epoch", *(f"{key}, {kind}" for kind, key in columns))
    numbers = details("Numbers", table(f"{name}, by epoch", heads, rows))
    return tag("article", tag("h3", name), *grids, numbers)


def _grid(name: str, rows: Sequence[Mapping[str, float]]) -> Html:
    """A small chart for each number that was logged, if it ever was one."""
    figures = []
    for key in _keys(rows):
        values = [row.get(key) for row in rows]
        if any(text.known(value) for value in values):
            caption = tag("figcaption", tag("b", key))
            figures.append(tag("figure", caption, curves.epoch_line(key, values)))
    if not figures:
        return Html()
    return tag("div", tag("h4", name), tag("div", *figures, class_="curves"), role="group", aria_label=name)


def _keys(rows: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _at(rows: Sequence[Mapping[str, float]], at: int, key: str) -> float | None:
    return rows[at].get(key) if at < len(rows) else None


def _number(value: float | None) -> str:
    return f"{value:.4g}" if text.known(value) else text.MISSING
