"""`prefchat finetune --preferences`: a run directory, tuned on pairs of replies."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from board import board_points, logged_points
from conftest import FILLINGS, QUESTIONS, one_line, quick

from prefchat_jax import preference_tuning
from prefchat_jax.chat.session import Chat
from prefchat_jax.cli.main import main
from prefchat_jax.errors import UserError
from prefchat_jax.finetune import Silent, finetune
from prefchat_jax.indexing import delete, index, open_store
from prefchat_jax.inference import Inference
from prefchat_jax.preference_tuning import tune_preferences
from prefchat_jax.text.dialogue import Example, Turn
from prefchat_jax.training.checkpoints import load_model, load_scorer
from prefchat_jax.training.config import FinetuneConfig
from prefchat_jax.training.groups_of_flags import OF_PREFERENCES
from prefchat_jax.training.run_directory import RunDirectory

# Another reply to each question; of the first two it is the better one.
OTHERS = {
    "parcel": "Parcels are tracked under Orders, sir.",
    "refund": "Refunds are under Orders, sir.",
    "login": "Resetting your password helps, sir.",
    "hours": "From nine to five we are open, sir.",
}
BETTER = ("parcel", "refund")


@pytest.fixture(scope="module")
def two_replies(run, tmp_path_factory):
    """The run, which can also give the other reply to each question."""
    path = shutil.copytree(run.run.path, tmp_path_factory.mktemp("runs") / "run")
    index(
        path,
        [],
        examples=[
            Example(
                (Turn("user", f"{question} {extra}".strip()),), OTHERS[label], label
            )
            for label, (_, question) in QUESTIONS.items()
            for extra in ("", *FILLINGS)
        ],
    )
    return path


def _asked(question):
    return (Turn("user", question),)


def _sides(label):
    """The better and the worse reply."""
    sides = QUESTIONS[label][0], OTHERS[label]
    return sides[::-1] if label in BETTER else sides


def _write_pairs(path, *, swapped=False):
    lines = []
    for label, (_, question) in QUESTIONS.items():
        for extra in FILLINGS[:6]:
            chosen, rejected = _sides(label)[:: -1 if swapped else 1]
            row = {"prompt": f"{question} {extra}", "chosen": chosen}
            lines.append(json.dumps(row | {"rejected": rejected, "annotator": "ann"}))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def pairs_path(tmp_path_factory):
    return _write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


def _config(source, pairs_path, output, **changes):
    settings = {"val_split": 0.0, "epochs": 30} | changes
    return FinetuneConfig(
        preferences=str(pairs_path), weights=str(source), output=str(output), **settings
    )


@pytest.fixture(scope="module")
def tuned(two_replies, pairs_path, tmp_path_factory):
    output = tmp_path_factory.mktemp("tuned") / "run"
    config = _config(two_replies, pairs_path, output, meta=f"{output}.json")
    return tune_preferences(config)


def _preferred(path, fillings=FILLINGS[6:]):
    """The share of unseen questions to which the better reply comes first."""
    with Chat.load(path) as chat:
        firsts = [
            chat.reply(f"{question} {extra}").candidates[0].response == _sides(label)[0]
            for label, (_, question) in QUESTIONS.items()
            for extra in fillings
        ]
    return float(np.mean(firsts))


def test_chat_gives_the_preferred_reply(two_replies, tuned, tmp_path):
    """And the other one, if it is preferred: nothing else than the pairs decides."""
    assert _preferred(two_replies) < 0.8
    assert _preferred(tuned.run.path) >= 0.85
    swapped = _write_pairs(tmp_path / "swapped.jsonl", swapped=True)
    tune_preferences(_config(two_replies, swapped, tmp_path / "run"))
    assert _preferred(tmp_path / "run") <= 0.15


def test_the_run_is_whole_and_only_its_scorer_is_new(two_replies, tuned, tmp_path):
    old, new = RunDirectory.open(two_replies), tuned.run
    assert load_model(old)[0] == load_model(new)[0]
    before, after = (Inference.load(run) for run in (old, new))
    np.testing.assert_array_equal(before.featurizer.idf, after.featurizer.idf)
    bags = before.featurizer([(Turn("user", "where is my parcel"),)])
    np.testing.assert_array_equal(before.bucket_logits(bags), after.bucket_logits(bags))
    assert (
        after.encode_contexts(bags).shape[1]
        == before.encode_contexts(bags).shape[1] + 1
    )
    valued = dataclasses.replace(load_scorer(old)[0], valued=True)
    assert load_scorer(new)[0] == valued
    config, meta = new.config(), json.loads((new.path.parent / "run.json").read_text())
    same = ("finetune", "labels_given", "data_fingerprint", "weights", "confidence")
    assert all(config[name] == old.config()[name] for name in same)
    told = config["preferences"]
    assert told["train_pairs"] == 24 and told["calibration_rows"] == 0
    assert meta["preferences"] == told and len(meta["history"]) == 30
    rows = [json.loads(line) for line in new.metrics.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 31))
    assert rows[-1]["rewards/accuracies"] > 0.8
    assert main(["export", str(new.path), "--output", str(tmp_path / "x.npz")]) == 0
    with Chat.load(new.path) as chat:
        chat.add("do you sell umbrellas", "Yes, at the counter.")
        assert "counter" in chat.reply("do you sell umbrellas").text


def test_tensorboard_has_the_epochs_of_a_tuning(two_replies, pairs_path, tmp_path):
    pytest.importorskip("tensorboardX")
    asked = _config(
        two_replies, pairs_path, tmp_path / "r", epochs=2, report_to="tensorboard"
    )
    run = tune_preferences(asked).run.path
    points = board_points(run)
    assert points == logged_points(run)
    assert [step for tag, step, _ in points if tag == "epochs/loss"] == [1, 2]


def test_the_store_is_copied_with_new_vectors(two_replies, tuned, tmp_path, pairs_path):
    """What was added and deleted since training stays so, under the same ids."""
    source = shutil.copytree(two_replies, tmp_path / "source")
    with Chat.load(source) as chat:
        chat.add("do you sell umbrellas", "Yes, at the counter.")
    delete(source, ids=[2])
    before = _stored(source)
    found = tune_preferences(_config(source, pairs_path, tmp_path / "run"))
    after = _stored(found.run.path)
    assert _stored(source) == before and 2 not in before and len(before) == 64
    assert after.keys() == before.keys()
    inference = Inference.load(found.run)
    for number, (entry, vector) in after.items():
        assert entry == before[number][0] and vector != before[number][1]
        bags = inference.featurizer([(Turn("assistant", entry.response),)])
        expected = inference.encode_responses(bags)[0]
        got = np.frombuffer(vector, "<f2")
        np.testing.assert_allclose(got, expected, atol=2e-3)


def _stored(path):
    """Entries by id, with the vectors of their responses."""
    with open_store(path / "responses.db", Inference.load(RunDirectory(path))) as store:
        changes = store.changes(0)
        entries = store.get(changes.ids)
        vectors = [changes.responses[i][2] for i in changes.response_ids]
    return {e.id: (e, v) for e, v in zip(entries, vectors, strict=True)}


def test_a_tuned_run_goes_on(tuned, corpus_path, pairs_path, tmp_path):
    """It is tuned again, and finetune starts from it."""
    again = tune_preferences(
        _config(tuned.run.path, pairs_path, tmp_path / "again", epochs=1)
    )
    assert _preferred(again.run.path) >= 0.85
    more = finetune(
        quick(corpus_path, tmp_path / "more", weights=str(tuned.run.path), epochs=1)
    )
    assert "preferences" not in more.run.config()
    with pytest.raises(UserError, match="--resume: tuning on --preferences"):
        _config(tuned.run.path, pairs_path, tuned.run.path, resume=True)
    with pytest.raises(UserError, match="was tuned on --preferences"):
        finetune(quick(corpus_path, tuned.run.path, resume=True))


def test_the_same_seed_makes_the_same_run(two_replies, pairs_path, tmp_path):
    runs = [
        tune_preferences(
            _config(two_replies, pairs_path, tmp_path / name, epochs=2, seed=seed)
        ).run
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    prints = [Inference.load(run).fingerprint for run in runs]
    assert prints[0] == prints[1] != prints[2]
    databases = [(run.path / "responses.db").read_bytes() for run in runs]
    assert databases[0] == databases[1]


def test_confidence_is_measured_on_rows_that_nothing_learned_from(
    run, two_replies, pairs_path, corpus_path, tmp_path
):
    """Of the run's own rows its validation rows; of others, but for asked prompts."""
    lines = corpus_path.read_text().splitlines()
    other = tmp_path / "other.jsonl"
    other.write_text("\n".join(lines[:9]) + "\n")  # Six of nine are in the pairs.
    for name, data, rows in (("a", corpus_path, None), ("b", other, 3)):
        config = _config(
            two_replies, pairs_path, tmp_path / name, data=str(data), epochs=1
        )
        found = tune_preferences(config)
        if rows is None:
            pairs = pairs_path.read_text().splitlines()
            asked = {json.loads(line)["prompt"] for line in pairs}
            val = [row.question for row in run.corpus.val_rows]
            rows = len([question for question in val if question not in asked])
        told = found.run.config()
        assert found.rows == told["preferences"]["calibration_rows"] == rows > 0
        old = RunDirectory.open(two_replies).config()
        assert told["confidence"] != old["confidence"]
        assert told["temperature"] == old["temperature"]


@pytest.mark.parametrize("changes", [{"data_seed": 5}, {"val": "val.jsonl"}])
def test_the_split_of_the_run_is_found_again(
    changes, corpus_path, tmp_path, monkeypatch
):
    """With a seed of its own, and where other rows validate: none that trained."""
    monkeypatch.chdir(tmp_path)
    lines = corpus_path.read_text().splitlines(keepends=True)
    (tmp_path / "val.jsonl").write_text("".join(lines[::5]).replace("where", "whither"))
    settings = {"epochs": 1, "scorer_epochs": 0} | changes
    made = finetune(quick(corpus_path, tmp_path / "run", **settings))
    config = _config(tmp_path / "run", "-", tmp_path / "t", data=str(corpus_path))
    rows = preference_tuning._calibration_rows(config, made.run, [], Silent())
    assert rows == made.corpus.val_rows and rows
    assert not set(rows) & set(made.corpus.train_rows)


# --- what is wrong


def test_the_command_tells_what_it_did(two_replies, pairs_path, tmp_path, capsys):
    argv = ["finetune", "--preferences", str(pairs_path), "--weights", str(two_replies)]
    argv += ["--output", str(tmp_path / "run"), "--epochs", "2", "--val_split", "0.3"]
    assert main([*argv, "--pref_noise", "re_po"]) == 0
    out = capsys.readouterr().out
    assert "training and " in out and "validation pairs" in out and "before" in out
    assert "reliability of the labels: ann 0." in out
    assert f"confidence: those of {two_replies}: give --data" in out
    assert "rewards/accuracies" in out and "epoch  2" in out
    assert (
        main(
            [
                "evaluate",
                "--weights",
                str(tmp_path / "run"),
                "--preferences",
                str(pairs_path),
            ]
        )
        == 0
    )
    assert "scorer" in capsys.readouterr().out


@pytest.mark.parametrize(
    "field", sorted(set(FinetuneConfig.__dataclass_fields__) - {*OF_PREFERENCES})
)
def test_a_flag_without_meaning_is_an_error(field):
    """None is ignored in silence."""
    default = FinetuneConfig.__dataclass_fields__[field].default
    others = {str: "epo", bool: not default, int: 7, float: 0.3, type(None): 7}
    value = others[type(default)]
    value = {"split_mode": "random", "lr_schedule": "constant"}.get(field, value)
    value = {"model_size": "base", "warmup_steps": 3}.get(field, value)
    with pytest.raises(UserError, match=f"--{field}"):
        FinetuneConfig(output="b", weights="a", preferences="p", **{field: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "chosen": "b"\n', r"p\.jsonl:1 is not valid JSON"),
        ('{"prompt": "a", "chosen": "b"}\n', r"p\.jsonl:1 \(no rejected reply\)"),
        ('{"prompt": "a", "chosen": "b", "rejected": "b"}\n', "chosen equals rejected"),
        ("", "no rows"),
        (None, "No such file"),
    ],
)
def test_a_wrong_file_is_one_line(text, message, run, tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    if text is not None:
        path.write_text(text)
    argv = ["finetune", "--preferences", str(path), "--weights", str(run.run.path)]
    assert main([*argv, "--output", str(tmp_path / "run")]) == 2
    assert re.search(message, one_line(capsys))
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_tuned_is_one_line(run, own_run, pairs_path, tmp_path, capsys):
    argv = ["finetune", "--preferences", str(pairs_path)]
    assert main([*argv, "--output", str(tmp_path / "a")]) == 2
    assert "name it with --weights RUN" in one_line(capsys)
    weights = ["--weights", str(run.run.path)]
    assert main([*argv, *weights, "--output", str(run.run.path)]) == 2
    assert "already holds a run" in one_line(capsys)
    data = ["finetune", "--data", str(pairs_path), "--output", str(tmp_path / "a")]
    assert main([*data, "--length_control", "matched"]) == 2
    assert "--length_control is for --preferences" in one_line(capsys)
    assert main([*argv, *weights, "--length_control", "no"]) == 2
    assert "--length_control no: use one of none" in one_line(capsys)
    (own_run / "responses.db").unlink()
    with pytest.raises(UserError, match="does not exist: build it with"):
        tune_preferences(_config(own_run, pairs_path, tmp_path / "a"))
    one = {"prompt": "a b", "chosen": "c d e", "rejected": "f"}
    (tmp_path / "p.jsonl").write_text(json.dumps(one) + "\n")
    with pytest.raises(UserError, match="matched: of 1 pairs none has a partner"):
        tune_preferences(
            _config(
                run.run.path,
                tmp_path / "p.jsonl",
                tmp_path / "a",
                length_control="matched",
            )
        )
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "wrong", [{"pref_objective": "os:nope"}, {"scorer_lr": 1e38, "epochs": 3}]
)
def test_a_tuning_that_fails_leaves_nothing(wrong, run, pairs_path, tmp_path):
    with pytest.raises(UserError):
        tune_preferences(_config(run.run.path, pairs_path, tmp_path / "a", **wrong))
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize("name", ["config.json", "checkpoints/labels.json"])
def test_metadata_never_replace_files_of_another_run(
    name, own_run, pairs_path, tmp_path, capsys
):
    """Neither of --weights nor of any other; nor does an export."""
    argv = ["--output", str(tmp_path / "a"), "--weights", str(own_run)]
    argv += ["--preferences", str(pairs_path), "--meta", str(own_run / name)]
    before = (own_run / "config.json").read_bytes()
    assert main(["finetune", *argv]) == 2
    assert "lies in a run directory: name another file" in one_line(capsys)
    assert (own_run / "config.json").read_bytes() == before
    other = shutil.copytree(own_run, tmp_path / "other")
    argv = [str(own_run), "--output", str(other / "inference.npz")]
    assert main(["export", *argv]) == 2
    assert "lies in a run directory" in one_line(capsys)


@pytest.mark.slow
def test_a_run_without_a_scorer_says_so(corpus_path, pairs_path, tmp_path):
    plain = finetune(quick(corpus_path, tmp_path / "r", scorer_epochs=0, epochs=1))
    with pytest.raises(UserError, match="has no response scorer"):
        tune_preferences(_config(plain.run.path, pairs_path, tmp_path / "a"))
