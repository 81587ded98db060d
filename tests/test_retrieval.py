import sys
import types

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from experiments import retrieval as experiment
from prefchat_jax import smalltalk
from prefchat_jax.baselines import BM25, TfIdf
from prefchat_jax.cli.main import main
from prefchat_jax.errors import UserError
from prefchat_jax.evaluation.ranks import rank_metrics
from prefchat_jax.evaluation.retrieval import (
    Retrieval,
    best,
    blocks,
    bm25_systems,
    chat_scorer,
    one_of_100,
    tfidf_systems,
)
from prefchat_jax.text.dialogue import Example, Turn

WORDS = [f"w{i}" for i in range(400)]


@pytest.fixture(scope="module")
def rows():
    """Responses of five words; the last message has two, the turn before two more."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(260):
        words = rng.choice(WORDS, 5, replace=False)
        context = (
            Turn("user", f"{words[0]} {words[1]}"),
            Turn("assistant", "well then"),
            Turn("user", f"{words[2]} {rng.choice(WORDS)}"),
        )
        made.append(Example(context, f"{' '.join(words)} n{i}", where=f"x:{i}"))
    return made


def test_blocks_are_the_protocol(rows):
    short = Example(rows[0].context, "yes please")
    again = Example((Turn("user", "other"),), rows[0].response)
    label = Example(rows[0].context, "", label="x")
    made = blocks([short, *rows, again, label])
    assert [len(block) for block in made] == [100, 100]
    flat = [row for block in made for row in block]
    order = np.random.default_rng(1234).permutation(260)[:200]
    assert flat == [rows[i] for i in order]  # The first of equal responses stays.
    assert made == blocks([short, *rows, again, label])
    with pytest.raises(UserError, match="the rows have 99"):
        blocks(rows[:99])


def test_a_system_ranks_within_its_block(rows):
    made = blocks(rows)
    seen = []

    def scorer(contexts, responses):
        seen.append(len(responses))
        truth = [row.response for row in rows]
        where = {row.context: row.response for row in rows}
        assert set(responses) <= set(truth)
        return np.array([[where[tuple(c)] == r for r in responses] for c in contexts])

    ranks = one_of_100(made, scorer)
    assert seen == [100, 100] and ranks.mrr.shape == (200,)
    assert np.all(ranks.recall_at_1 == 1)
    blind = one_of_100(made, lambda c, r: np.zeros((len(c), len(r))))
    assert np.mean(blind.recall_at_1) == pytest.approx(0.01)


def test_a_chat_gets_messages_and_histories(rows):
    class Fake:
        def score_responses(self, messages, responses, *, histories=None):
            assert histories is not None
            first = [set(history[0].content.split()) for history in histories]
            last = [set(message.split()) for message in messages]
            asked = [a | b for a, b in zip(first, last, strict=True)]
            return np.array(
                [[len(q & set(r.split())) for r in responses] for q in asked]
            )

    found = Retrieval("run", one_of_100(blocks(rows), chat_scorer(Fake())))
    means = found.means()
    assert means["recall_at_1"][0] > 0.95
    for mean, low, high in means.values():
        assert low <= mean <= high


def test_bm25_knows_the_block_or_the_training(rows):
    made = blocks(rows)
    train = [Example(row.context, f"{row.response} w1 w2 w3") for row in rows]
    systems = bm25_systems(made, train)
    names = [system.system for system in systems]
    assert len(names) == len(set(names)) == 4
    assert len(bm25_systems(made, [])) == 2
    block = made[0]
    responses = [row.response for row in block]
    queries = [" ".join(turn.content for turn in row.context) for row in block]
    scores = BM25(responses).scores(queries)
    expected = rank_metrics(scores, np.arange(100)).recall_at_1
    assert systems[1].system == "BM25, whole context, statistics of the block"
    assert np.mean(systems[1].rows.recall_at_1[:100]) == expected
    # Training statistics: all texts are indexed, the block's are ranked.
    everything = [row.response for row in train]
    everything += [row.response for block in made for row in block]
    full = BM25(everything).scores(queries)[:, len(train) : len(train) + 100]
    expected = rank_metrics(full, np.arange(100)).mrr
    assert systems[3].system == "BM25, whole context, statistics of training"
    assert np.mean(systems[3].rows.mrr[:100]) == pytest.approx(expected)
    # The whole context has four of the words, the last message one.
    assert best(systems).system.startswith("BM25, whole context")


def test_bm25_scores_only_the_texts_that_are_asked_for():
    index = BM25(["red apple", "green pear", "red pear"])
    full = index.scores(["red pear", "the"])
    np.testing.assert_array_equal(
        index.scores(["red pear", "the"], [2, 0]), full[:, [2, 0]]
    )
    assert full[0].argmax() == 2 and not full[1].any()


def test_tfidf_is_fitted_on_the_training_texts(rows):
    made = blocks(rows)
    texts = [text for row in rows for text in (row.question, row.response)]
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(
        list(dict.fromkeys(texts))
    )
    block = made[1]
    right = cosine_similarity(
        vectors.transform([row.question for row in block]),
        vectors.transform([row.response for row in block]),
    )
    systems = tfidf_systems(made, rows)
    expected = rank_metrics(right, np.arange(100)).mrr
    assert np.mean(systems[0].rows.mrr[100:]) == pytest.approx(expected)
    assert best(systems).system == "TF-IDF, whole context"
    assert not TfIdf(["a bc"]).scores(["xyz"], ["bc"]).any()
    assert len(tfidf_systems(made, [])) == 2


def test_the_experiment_holds_out_values_of_a_field(tmp_path, capsys, rows):
    import json

    path = tmp_path / "faq.jsonl"
    lines = [
        {"user": row.question, "assistant": row.response, "topic": f"t{i % 40}"}
        for i, row in enumerate(rows * 2)
    ]
    for i, line in enumerate(lines[len(rows) :]):
        line["assistant"] += f" m{i}"
    path.write_text("\n".join(map(json.dumps, lines)))
    train, held_out = experiment.split_by(str(path), "topic")
    assert len(train) + len(held_out) == len(lines) and held_out
    topic = {line["assistant"]: line["topic"] for line in lines}
    topics = [{topic[row.response] for row in part} for part in (train, held_out)]
    assert not topics[0] & topics[1]
    experiment.main(["--data", str(path), "--train", str(path)])
    assert "TF-IDF, whole context" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        experiment.main(["--data", str(path), "--train", "x", "--hold_out", "topic"])
    assert stop.value.code == 2 and "--hold_out" in capsys.readouterr().err


def test_small_talk_is_ranked_by_the_same_protocol(monkeypatch, rows, capsys):
    turn = lambda text: [{"text": text}]
    dialogues = {
        f"d{i}": {"messages": [turn(row.question), turn(""), turn(row.response)]}
        for i, row in enumerate(rows * 20)
    }
    fake = types.SimpleNamespace(Dataset=lambda: dialogues)
    monkeypatch.setitem(sys.modules, "chitchat_dataset", fake)
    _, held_out = smalltalk._examples()
    assert len(blocks(held_out)) == 1  # A twentieth, each row twenty times.
    bm25, ours = smalltalk.compare_retrieval()
    assert bm25.system.startswith("BM25") and ours.system == "hashed features"
    for system in (bm25, ours):
        assert 0.2 < np.mean(system.rows.recall_at_1) <= 1  # A guess has 0.01.
    assert main(["demo", "--corpus", "chitchat"]) == 0
    assert "hashed features" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "chitchat_dataset", None)
    with pytest.raises(UserError, match="demo"):
        smalltalk.compare_retrieval()


@pytest.mark.slow
def test_the_bar_on_real_dialogues(shared):
    from prefchat_jax.datasets.records import read_records

    folder = shared / "data" / "dialogues"
    train, val = (
        read_records([folder / f"chitchat_{part}.jsonl"]).examples
        for part in ("train", "val")
    )
    found = best(bm25_systems(blocks(val), train))
    assert found.system == "BM25, last message, statistics of training"
    assert np.mean(found.rows.recall_at_1) == pytest.approx(0.200, abs=0.005)
