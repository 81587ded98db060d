"""Duplicates and samples against brute force."""

import re

import numpy as np
import pytest
from test_building import build_rows, lines_of, write_rows

from prefchat_jax.building import duplicates
from prefchat_jax.building.build import build
from prefchat_jax.building.config import BuildConfig
from prefchat_jax.building.duplicates import Pairs, keep_first
from prefchat_jax.building.sample import draws, threshold


def _sentence(rng, words):
    return " ".join(f"w{i}" for i in rng.integers(0, 300, words))


def _edited(rng, text, edits):
    words = text.split()
    for place in rng.integers(0, len(words), edits):
        words[place] = f"e{rng.integers(1000)}"
    return " ".join(words)


def planted(rng, count=400):
    """Rows of which a fifth nearly repeats an earlier one, in one side or both."""
    rows = []
    for _ in range(count):
        kind = rng.integers(10) if rows else 9
        user, reply = _sentence(rng, 24), _sentence(rng, 40)
        if kind < 5:
            earlier = rows[rng.integers(len(rows))]
            if kind != 1:
                user = _edited(rng, earlier["user"], int(rng.integers(3)))
            if kind != 2:
                reply = _edited(rng, earlier["assistant"], int(rng.integers(4)))
        rows.append({"user": user, "assistant": reply})
    return rows


def _pairs(text):
    words = re.findall(r"\w+", text.lower())
    return set(zip([None, *words], words, strict=False))


def _index(left, right):
    return len(left & right) / len(left | right)


def kept_by_definition(rows, least, on):
    """Keep-first over all pairs: no bands, no hashes."""
    sets = [(_pairs(row["user"]), _pairs(row["assistant"])) for row in rows]
    sides = (0, 1) if on == "pair" else (0,)
    kept = []
    for row, own in enumerate(sets):
        if not any(
            all(_index(own[side], sets[other][side]) >= least for side in sides)
            for other in kept
        ):
            kept.append(row)
    return kept


@pytest.mark.parametrize("on", ["pair", "context"])
@pytest.mark.parametrize("least", [0.6, 0.8])
def test_near_duplicates_are_those_of_the_definition(tmp_path, rng, on, least):
    rows = planted(rng)
    _, report = build_rows(tmp_path, rows, near_duplicates=least, dedupe_on=on)
    got = [row["user"] for row in lines_of(tmp_path / "out.jsonl")]
    kept = kept_by_definition(rows, least, on)
    wanted = [rows[i]["user"] for i in kept]
    assert len(wanted) < 0.9 * len(rows)
    # No kept row is lost; of the others at most one in a hundred stays.
    assert set(wanted) <= set(got)
    assert len(got) - len(wanted) <= 0.01 * (len(rows) - len(wanted)) + 1
    dropped = report["reasons"]["near_duplicate"]["rows"]
    assert dropped + report["reasons"].get("duplicate", {"rows": 0})["rows"] == len(
        rows
    ) - len(got)


def test_different_questions_with_one_long_reply_are_no_duplicates(tmp_path, rng):
    reply = _sentence(rng, 200)
    rows = [{"user": _sentence(rng, 5), "assistant": reply} for _ in range(50)]
    build_rows(tmp_path, rows)
    assert len(lines_of(tmp_path / "out.jsonl")) == 50


def test_moments_of_one_dialogue_are_no_duplicates(tmp_path, rng):
    turns = [
        {
            "role": ("user", "assistant")[i % 2],
            "content": _sentence(rng, 60 if i < 2 else 6),
        }
        for i in range(20)
    ]
    changed = [dict(turn) for turn in turns]
    changed[0]["content"] = _edited(rng, changed[0]["content"], 1)
    build_rows(tmp_path, [{"messages": turns}])
    assert len(lines_of(tmp_path / "out.jsonl")) == 10
    build_rows(tmp_path, [{"messages": turns}, {"messages": changed}])
    # The last replies of the copy no longer see the turn that was changed.
    assert len(lines_of(tmp_path / "out.jsonl")) == 10


def test_exact_duplicates_ignore_case_and_white_space(tmp_path):
    rows = [
        {"user": "Where is it?", "assistant": "On the second floor."},
        {"user": "where  is it?", "assistant": "on the\u00a0second floor."},
        {"user": "Where is it?", "assistant": "On the third floor, I think."},
    ]
    build_rows(tmp_path, rows, near_duplicates=0)
    assert len(lines_of(tmp_path / "out.jsonl")) == 2
    build_rows(tmp_path, rows, near_duplicates=0, dedupe_on="context")
    assert len(lines_of(tmp_path / "out.jsonl")) == 1
    build_rows(tmp_path, rows, allow_duplicates=True)
    assert len(lines_of(tmp_path / "out.jsonl")) == 3


def test_one_question_under_two_labels_is_no_duplicate(tmp_path):
    rows = [{"user": "where is it?", "label": label} for label in (1, 2, 1)]
    build_rows(tmp_path, rows)
    assert [row["label"] for row in lines_of(tmp_path / "out.jsonl")] == [1, 2]


def test_partitions_do_not_change_the_result(tmp_path, rng, monkeypatch):
    rows = planted(rng)
    rows += rows[::5]
    build_rows(tmp_path, rows)
    wanted = (tmp_path / "out.jsonl").read_bytes()
    monkeypatch.setattr(duplicates, "_BYTES_OF_KEY", 2**28)  # Hundreds of partitions.
    monkeypatch.setattr(duplicates, "_READ", 7)
    build_rows(tmp_path, rows)
    assert (tmp_path / "out.jsonl").read_bytes() == wanted


def test_a_chain_of_small_differences_keeps_its_far_end():
    pairs = Pairs(np.array([0, 1, 2, 5]), np.array([1, 2, 3, 5 + 1]))
    kept = keep_first(pairs)
    assert dict(zip(kept.right.tolist(), kept.left.tolist(), strict=True)) == {
        1: 0,
        3: 2,
        6: 5,
    }


# --- samples


def test_a_sample_follows_the_weights(rng):
    keys = rng.integers(0, 2**63, 40_000, np.uint64)
    weights = np.where(np.arange(40_000) % 2 == 0, 3.0, 1.0)
    numbers = draws(keys, weights, 7)
    drawn = numbers <= threshold(lambda: np.array_split(numbers, 5), 2000)
    assert drawn.sum() == 2000
    # Few of many: the odds of a row are those of its weight.
    assert weights[drawn].mean() == pytest.approx(0.75 * 3 + 0.25, abs=0.05)
    others = draws(keys, weights, 8)
    assert not np.array_equal(drawn, others <= np.sort(others)[1999])


@pytest.mark.parametrize("count", [1, 2, 999, 1000])
def test_the_threshold_is_the_nth_smallest(rng, count):
    numbers = draws(rng.integers(0, 2**63, 1000, np.uint64), np.ones(1000), 0)
    numbers[:3] = numbers[0]  # Ties.
    got = threshold(lambda: np.array_split(numbers, 3), count)
    assert got == np.sort(numbers)[count - 1]


def test_a_row_that_is_drawn_stays_drawn_when_others_go(rng):
    keys = rng.integers(0, 2**63, 1000, np.uint64)
    numbers = draws(keys, np.ones(1000), 0)
    drawn = set(keys[np.argsort(numbers)[:100]])
    fewer = keys[::2]
    again = set(fewer[np.argsort(draws(fewer, np.ones(500), 0))[:100]])
    assert drawn & set(fewer) <= again


def test_target_source_weights_and_boost(tmp_path, rng):
    files = []
    for name in ("a", "b"):
        rows = [
            {"user": _sentence(rng, 6), "assistant": _sentence(rng, 9)}
            for _ in range(1000)
        ]
        files.append(write_rows(tmp_path / f"{name}.jsonl", rows))
    code = [
        {"user": f"python sql question {i}", "assistant": _sentence(rng, 9)}
        for i in range(400)
    ]
    files.append(write_rows(tmp_path / "c.jsonl", code))

    def shares(**changes):
        build(_config(tmp_path, files, target=300, **changes))
        rows = lines_of(tmp_path / "out.jsonl")
        assert len(rows) == 300
        return [sum(row["source"] == name for row in rows) for name in "abc"]

    plain = shares()
    assert abs(plain[0] - plain[1]) < 60 and plain[2] < 80
    weighted = shares(source_weights=("a=4",))
    assert weighted[0] > 2.5 * weighted[1]
    assert shares(source_weights=("a=0",))[0] == 0
    boosted = shares(programming_boost_factor=3.0)
    share = 400 / 2400
    wanted = share * 3 / (share * 3 + 1 - share)
    assert boosted[2] / 300 == pytest.approx(wanted, abs=0.08)
    assert shares(seed=1) != plain


def _config(tmp_path, files, **changes):
    return BuildConfig(
        inputs=tuple(map(str, files)),
        output=str(tmp_path / "out.jsonl"),
        workers=1,
        **changes,
    )
