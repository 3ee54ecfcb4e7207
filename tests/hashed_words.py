"""A sentence encoder without a model: vectors are similar if sentences share words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def hashed_words(sentences: Sequence[str]) -> NDArray[np.float32]:
    """Encode sentences: float32 [sentences, 64]."""
    rows = [
        np.sum([np.random.default_rng(_number(word)).standard_normal(64) for word in sentence.split()], axis=0)
        for sentence in sentences
    ]
    return np.array(rows, np.float32)


def _number(word: str) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big")
