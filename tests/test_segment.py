"""A segment and its vectors beside brute force."""

import numpy as np
import pytest
from test_store import BITS, blob

from prefchat_jax.chat.segment import Segment
from prefchat_jax.chat.store import Changes
from prefchat_jax.chat.vectors import VectorIndex
from prefchat_jax.text.words import WordQuery


def _segment(vectors, buckets=None, counts=None, given=None):
    """One entry for each vector, or as many as responses are `given`."""
    count = len(vectors if given is None else given)
    responses = {
        i: ("same text", blob("same text"), v.astype("<f2").tobytes())
        for i, v in enumerate(vectors)
    }
    return Segment.build(
        Changes(
            1,
            np.arange(1, count + 1),
            ["same question"] * count,
            np.arange(count) if given is None else given,
            np.full(count, -1, np.int32) if buckets is None else buckets,
            np.ones(count, np.int32) if counts is None else counts,
            [blob("same question")] * count,
            responses,
            np.zeros(0, np.int64),
        ),
        BITS,
    )


def clustered(rng, count, width=64, clusters=300):
    """Unit vectors around centres whose sizes and directions are uneven.

    The spectrum falls as 1 / (1 + i / 12), as that of the scorer's vectors does.
    """
    spectrum = 1 / (1 + np.arange(width) / 12)
    centres = rng.standard_normal((clusters, width)) * spectrum
    odds = 1 / np.arange(1, clusters + 1)
    member = rng.choice(clusters, count, p=odds / odds.sum())
    noise = rng.standard_normal((count, width)) * spectrum
    found = (centres[member] + 0.7 * noise) @ np.linalg.qr(
        rng.standard_normal((width, width))
    )[0]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_nearest_is_brute_force_for_few_responses(rng):
    vectors = clustered(rng, 2000)
    buckets = rng.integers(-1, 6, len(vectors)).astype(np.int32)
    segment = _segment(vectors, buckets)
    ordered = vectors[segment.response_ids]
    of = buckets[segment.response_ids]
    assert (np.diff(of) >= 0).all()
    alive = rng.random(len(vectors)) < 0.5
    for query in clustered(rng, 20):
        for chosen, living in (
            (None, None),
            ([2, 5], None),
            ([], alive),
            (None, alive),
        ):
            products = (ordered @ query).copy()
            if chosen is not None:
                products[~np.isin(of, [-1, *chosen])] = -np.inf
            if living is not None:
                products[~living] = -np.inf
            expected = np.sort(products)[::-1][:9]
            found = segment.nearest(
                query,
                9,
                buckets=None if chosen is None else np.array(chosen, int),
                alive=living,
            )
            np.testing.assert_allclose(products[found], expected, atol=8e-3)
    assert not len(segment.nearest(query[:3], 9))
    assert len(segment.nearest(query, 5000)) == 2000


def _recall(rng, count, clusters):
    """The share of the ten nearest that is found."""
    vectors = clustered(rng, count + 100, clusters=clusters)
    vectors, queries = vectors[:-100], vectors[-100:]
    segment = _segment(vectors)
    assert segment.vectors.codes.shape == (4, count)
    found = 0
    for query in queries:
        best = np.argsort(-(vectors @ query))[:10]
        rows = segment.nearest(query, 10)
        found += len(set(best.tolist()) & set(segment.response_ids[rows].tolist()))
    return found / 1000


@pytest.mark.parametrize("clusters", [1, 300])
def test_of_many_responses_nearly_all_neighbours_are_found(rng, clusters):
    """Also where there are no clusters at all."""
    assert _recall(rng, 30_000, clusters) >= (0.98 if clusters > 1 else 0.95)


def test_codes_keep_out_what_is_not_allowed(rng):
    vectors = clustered(rng, 25_000, 16)
    index = VectorIndex.build(vectors)
    rows = rng.integers(len(vectors), size=50)
    expected = vectors[rows] @ vectors[3]
    np.testing.assert_allclose(index.match(rows, vectors[3]), expected, atol=8e-3)
    for share in (0.3, 0.02):
        allowed = rng.random(len(vectors)) < share
        found = index.nearest(vectors[3], 200, allowed)
        assert len(found) == 200 and allowed[found].all()
        products = index.match(found, vectors[3])
        assert (np.diff(products) <= 1e-6).all()
    assert len(index.nearest(vectors[3], 9_000)) == 9_000
    again = VectorIndex.build(vectors)
    np.testing.assert_array_equal(again.codes, index.codes)


def test_a_code_is_the_side_of_each_plane(rng):
    vectors = clustered(rng, 3_000, 64)
    index = VectorIndex.build(vectors)
    np.testing.assert_allclose(np.linalg.norm(index.planes, axis=0), 1, atol=1e-5)
    across = index.planes[:, :64].T @ index.planes[:, :64]
    np.testing.assert_allclose(across, np.eye(64), atol=1e-5)
    sides = vectors @ index.planes > 0
    expected = (sides[5] != sides).sum(1)
    query = vectors[5]
    np.testing.assert_array_equal(index._distances(query), expected)
    opposite = index._distances(-query)
    assert opposite[5] == 0  # 256 bits, in a byte: it is compared in full.
    assert 5 not in index.nearest(-query, 100)


def test_a_response_of_two_buckets_is_in_both(rng):
    """Else it would be found by its most frequent bucket only."""
    vectors = clustered(rng, 2, 8)
    segment = _segment(
        vectors,
        buckets=np.array([2, 2, 0, 1], np.int32),
        counts=np.array([1, 3, 1, 1], np.int32),
        given=np.array([0, 0, 0, 1]),
    )
    ids = lambda bucket: segment.response_ids[segment.of_buckets(np.array([bucket]), 9)]
    assert [ids(bucket).tolist() for bucket in range(3)] == [[0], [1], [0]]
    assert segment.buckets[segment.best_entries].tolist() == [0, 1, 2]
    found = segment.nearest(vectors[0], 9, buckets=np.array([0]))
    assert segment.response_ids[found].tolist() == [0]


def test_the_responses_of_a_bucket_come_by_frequency(rng):
    buckets = np.array([0, 1, 0, 2, 0, 1], np.int32)
    counts = np.array([1, 4, 3, 1, 2, 9], np.int32)
    segment = _segment(clustered(rng, 6, 8), buckets, counts)
    found = lambda *args, **kinds: segment.response_ids[
        segment.of_buckets(np.array(args[0]), args[1], **kinds)
    ].tolist()
    assert found([0, 1], 2) == [2, 4, 5, 1] and found([2, 7], 2) == [3]
    alive = segment.response_ids != 2
    assert found([0], 2, alive=alive) == [4, 0]
    assert found([], 3) == []


def test_an_empty_segment_answers_nothing():
    segment = _segment(np.zeros((0, 8)))
    assert not len(segment.nearest(np.ones(8, np.float32), 3))
    assert not len(segment.of_buckets(np.array([0]), 3))
    assert not len(segment.question_words.sums(WordQuery.of([("a", 1.0)])))


@pytest.mark.slow
def test_neighbours_among_a_hundred_thousand(rng):
    assert _recall(rng, 100_000, 3000) >= 0.98
