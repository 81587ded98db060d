"""The reference's features: its own vectors, to the rounding of float32."""

import json
import pathlib

import numpy as np
import pytest

from prefchat_jax.compat import features
from prefchat_jax.compat.features import NUM_FEATURES, context_v2, featurise, legacy

GOLDEN = pathlib.Path(__file__).parent / "golden"
TEXTS = json.loads((GOLDEN / "reference_features.json").read_text())


@pytest.mark.parametrize("mode", features.MODES)
def test_the_vectors_of_the_reference(mode):
    with np.load(GOLDEN / "reference_features.npz") as arrays:
        expected = arrays[mode]
    np.testing.assert_allclose(featurise(TEXTS, mode), expected, atol=1e-6)


def test_the_vectors_of_its_candidates(shared):
    cases = json.loads((shared / "fixtures" / "ranker.json").read_text())
    found = {}
    for case in cases:
        found |= {row["text"]: row["vec"] for row in case["candidates"]}
    assert len(found) > 50
    np.testing.assert_allclose(
        featurise(list(found), "legacy"), list(found.values()), atol=2e-6
    )


def test_the_hashes_of_the_reference(shared):
    expected = json.loads((shared / "fixtures" / "hash64.json").read_text())
    assert {key: [features.hash64(key)] for key in expected} == expected


def test_shapes_and_norms():
    assert featurise([], "legacy").shape == (0, NUM_FEATURES)
    rows = featurise(["", "hi", "\ud800 odd \0", "Ünïcödé"], "context_v2")
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), [0, 1, 1, 1], atol=1e-6)


def test_a_cached_vector_cannot_be_changed_from_outside():
    legacy("hello")[:] = 0
    assert legacy("hello").any()


def test_later_lines_count_more():
    question = legacy("[user] where is my parcel")
    asked, other = "User: where is my parcel", "User: anything else today"
    late, early = context_v2(f"{other}\n{asked}"), context_v2(f"{asked}\n{other}")
    assert late @ question > early @ question > 0.5


def test_only_the_newest_lines_are_read():
    lines = [f"User: message {i}" for i in range(40)]
    whole, newest = ("\n".join(part) for part in (lines, lines[-32:]))
    np.testing.assert_array_equal(context_v2(whole), context_v2(newest))
