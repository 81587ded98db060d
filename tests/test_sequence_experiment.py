import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import sequence_preferences
from experiments.language_model import (
    ANSWER,
    END,
    PAD,
    UNKNOWN,
    ModelConfig,
    Row,
    Scores,
    build_vocabulary,
    encode,
    split,
)
from prefchat_jax.errors import UserError
from prefchat_jax.finetune import Silent

COLOURS = ("red", "green", "blue", "grey", "pink", "black", "white", "brown")
THINGS = ("hat", "car", "house", "cup")
TINY = ModelConfig(
    vocabulary=60, max_prompt=8, max_response=8, width=16, layers=1, heads=2
)


@pytest.fixture(scope="module")
def polite_path(tmp_path_factory):
    """The better answer is the polite one; both are as long and as frequent."""
    lines = [
        json.dumps(
            {
                "prompt": f"Which colour has the {colour} {thing}?",
                "chosen": f"The {thing} is {colour}, sir.",
                "rejected": f"The {thing} is {colour}, fool.",
                "source": "invented",
            }
        )
        for colour in COLOURS
        for thing in THINGS
    ]
    path = tmp_path_factory.mktemp("preferences") / "polite.jsonl"
    path.write_text("\n".join(lines) + "\n\n")
    return path


def test_tuning_raises_the_accuracy_on_prompts_that_it_never_saw(polite_path):
    stage = sequence_preferences.Stage(epochs=0, lr=1e-3)
    config = sequence_preferences.Config(
        data=str(polite_path),
        objective=("dpo", "orpo"),
        val_split=0.25,
        model=TINY,
        supervised=dataclasses.replace(stage, epochs=1),
        preference=dataclasses.replace(stage, epochs=8, lr=1e-2),
    )
    rows = sequence_preferences.run(config, Silent())["rows"]
    assert [row["objective"] for row in rows] == ["dpo", "orpo"]
    for row in rows:
        assert row["held_out_rows"] == 8
        assert row["longer"] == row["shorter"] == 0.5
        assert row["accuracy_after"] > max(row["accuracy_before"], 0.9)
        assert row["reward_accuracy_after"] > 0.9
        assert row["margin_after"] > row["margin_before"]
    # A policy that is its own reference rewards nothing.
    assert rows[0]["reward_accuracy_before"] == 0.5


@pytest.mark.parametrize("name", sequence_preferences.OBJECTIVES)
def test_every_objective_pushes_the_chosen_response_up(name):
    objective = sequence_preferences.OBJECTIVES[name]
    sums = jnp.array([[-6.0, -4.0, -5.0], [-5.0, -6.0, -4.5]])
    reference = Scores(sums - 0.5, sums / 4)

    def total(chosen):
        scores = jnp.stack([chosen, sums[1]])
        return objective.loss(Scores(scores, scores / 4), reference).sum()

    gradient = jax.grad(total)(sums[0])
    assert jnp.isfinite(gradient).all() and (gradient != 0).any()
    # APO-down lowers both responses if they differ; DiscoPOP is not monotone.
    assert (gradient <= 0).all() or name in ("apo_down", "discopop")


def test_no_prompt_is_on_both_sides():
    rows = [Row(str(i // 3), str(i), "") for i in range(30)]
    train, val = split(rows, 0.2, np.random.default_rng(0))
    assert len(val) == 6 and len(train) == 24
    assert not {row.prompt for row in train} & {row.prompt for row in val}


def test_responses_start_in_one_column_and_prompts_lose_their_beginning():
    config = dataclasses.replace(TINY, max_prompt=3, max_response=4)
    row = Row("one two three", "one!", "two two two two two two")
    vocabulary = build_vocabulary([row], 60)
    one, two, three = (vocabulary[word] for word in ("one", "two", "three"))
    tokens = encode([row, Row("one", "new", "")], vocabulary, config)
    assert tokens.tolist() == [
        [
            [two, three, ANSWER, one, vocabulary["!"], END, PAD],
            [PAD, one, ANSWER, UNKNOWN, END, PAD, PAD],
        ],
        [
            [two, three, ANSWER, two, two, two, two],
            [PAD, one, ANSWER, END, PAD, PAD, PAD],
        ],
    ]
    assert len(build_vocabulary([row], 5)) == 5


@pytest.mark.parametrize(
    "line", ['{"prompt": "a", "chosen": "b"}', '{"prompt": ', "[1]", "\udcff"]
)
def test_a_bad_row_is_named(tmp_path, capsys, line):
    path = tmp_path / "rows.jsonl"
    good = '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
    path.write_text(good + line + "\n", errors="surrogateescape")
    with pytest.raises(UserError, match="rows.jsonl:2: ") as error:
        sequence_preferences.run(sequence_preferences.Config(data=str(path)), Silent())
    assert "\n" not in str(error.value)
    with pytest.raises(SystemExit, match="2"):
        sequence_preferences.EXPERIMENT.main(["--data", str(path)])
    assert capsys.readouterr().err.startswith(f"error: {path}:2: ")


def test_no_file_and_one_prompt_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(UserError, match="No such file"):
        sequence_preferences.run(sequence_preferences.Config(data=str(path)), Silent())
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(UserError, match="two prompts"):
        sequence_preferences.run(sequence_preferences.Config(data=str(path)), Silent())


def test_the_table_is_printed_and_the_figures_are_written(
    polite_path, tmp_path, capsys
):
    row = {"objective": "dpo", "held_out_rows": 8.0, "seconds": 1.0}
    for key in ("longer", "shorter", "margin_before", "margin_after"):
        row |= {key: 0.5, f"{key}_std": 0.0}
    for key in ("accuracy_before", "accuracy_after", "reward_accuracy_after"):
        row |= {key: 0.75, f"{key}_std": 0.0}
    result = {"rows": [row, row | {"objective": "ipo", "accuracy_after": 0.8}]}
    experiment = sequence_preferences.EXPERIMENT._replace(
        run=lambda config, progress: result | {"seeds": config.seeds}
    )
    command = ["--data", str(polite_path), "--seeds", "2", "--output", str(tmp_path)]
    experiment.main(command)
    printed = capsys.readouterr().out
    assert "0.750 +- 0.000" in printed and printed.index("ipo") < printed.index("dpo")
    written = json.loads((tmp_path / "sequence_preferences.json").read_text())
    assert written["rows"] == result["rows"] and written["seeds"] == 2
    [axes] = experiment.draw(written).axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["ipo", "dpo", "supervised", "the longer one", "the shorter one"]


def test_an_objective_that_is_none_is_named(polite_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        sequence_preferences.EXPERIMENT.main(
            ["--data", str(polite_path), "--objective", "dpo", "kto"]
        )
    assert "--objective kto" in capsys.readouterr().err
