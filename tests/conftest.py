import contextlib
import json
import os
import pathlib
import shutil
import sqlite3

# Tests compile much and compute little: let LLVM optimise less. Before JAX.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import numpy as np
import pytest
from reference_network import META, random_state, write_pth

from prefchat_jax.compat.importing import import_run
from prefchat_jax.datasets.records import read_records
from prefchat_jax.finetune import finetune
from prefchat_jax.training.config import FinetuneConfig

jax.config.update("jax_numpy_rank_promotion", "raise")
# The default of a GPU is off by more than tests allow.
jax.config.update("jax_default_matmul_precision", "highest")

SHARED = pathlib.Path(__file__).parents[2] / "shared"

QUESTIONS = {
    "parcel": ("Open Orders to track it. Parcels take 3.5 days.", "where is my parcel"),
    "refund": ("First open Orders. Then press Refund. We pay in 5 days.", "money back"),
    "login": ("Reset the password at https://example.com/reset.", "cannot log in"),
    "hours": ("We are open from nine to five.", "when are you open"),
}
FILLINGS = ("please", "today", "now", "help", "hello", "again", "sir", "team")


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory):
    """Commands keep what they compile out of the home of who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """Drops compiled programs when they are many.

    Each maps some twenty pieces of memory, of which Linux allows a process 65,530; the
    next one crashes it.
    """
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def corpus_path(tmp_path_factory):
    """Four answers, nine questions each; every word of a question is telling."""
    lines = []
    for label, (answer, question) in QUESTIONS.items():
        for extra in ("", *FILLINGS):
            user = f"{question} {extra}".strip()
            lines.append(
                f'{{"user": "{user}", "assistant": "{answer}", "label": "{label}"}}'
            )
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def examples(corpus_path):
    return read_records([corpus_path]).examples


def quick(corpus_path, output, **changes):
    """A small run of a few seconds."""
    settings = {
        "model_size": "base",
        "epochs": 6,
        "val_split": 0.2,
        "lr": 0.02,
        "batch_size": 8,
    }
    return FinetuneConfig(
        data=str(corpus_path), output=str(output), **(settings | changes)
    )


@pytest.fixture(scope="session")
def run(corpus_path, tmp_path_factory):
    """A finished run directory; tests that change it copy it first."""
    return finetune(quick(corpus_path, tmp_path_factory.mktemp("runs") / "run"))


@pytest.fixture(scope="session")
def reference_files(tmp_path_factory):
    """A checkpoint with four classes, `x.pth`, and its metadata, `x.json`."""
    folder = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        write_pth(folder / "x.pth", random_state("large"), patch)
    (folder / "x.json").write_text(json.dumps(META))
    return folder


@pytest.fixture(scope="session")
def imported(reference_files, tmp_path_factory):
    """The run of it; tests that change it copy it first."""
    output = tmp_path_factory.mktemp("runs") / "imported"
    return import_run(
        reference_files / "x.pth", output, meta=reference_files / "x.json"
    )


@pytest.fixture
def no_connection_left(monkeypatch):
    """Fails a test that leaves a connection to SQLite open.

    Python 3.13 warns of one only when it is collected. A connection is in a cycle
    with its cache of statements, so that happens later, in whatever test then runs.
    """
    made = []
    connect = sqlite3.connect

    def recorded(*args, **kwargs):
        made.append(connect(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", recorded)
    yield
    for db in made:
        with contextlib.closing(db), pytest.raises(sqlite3.ProgrammingError):
            db.execute("SELECT 1")


@pytest.fixture
def shared():
    """Real data that lies beside a checkout; a test without it is skipped."""
    if not SHARED.exists():
        pytest.skip("real data is not here: needs ../shared beside the checkout")
    return SHARED


def one_line(capsys):
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if "Event loop is closed" not in line]
    assert len(lines) == 1 and lines[0].startswith("prefchat: error: "), error
    return lines[0]


@pytest.fixture
def own_run(run, tmp_path):
    """A copy of the run that a test may change."""
    return shutil.copytree(run.run.path, tmp_path / "run")
