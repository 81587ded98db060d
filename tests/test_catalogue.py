"""Sidecars that lie, and a catalogue that follows its store."""

import contextlib
import pathlib
import tempfile
import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from test_store import BITS, answers

from prefchat_jax.chat import catalogue as module
from prefchat_jax.chat import segment as segment_module
from prefchat_jax.chat.catalogue import Catalogue, save_segment, segment_path
from prefchat_jax.chat.mapped import open_arrays, write_arrays
from prefchat_jax.chat.segment import Segment
from prefchat_jax.chat.sqlite_store import SqliteStore

pytestmark = pytest.mark.usefixtures("no_connection_left")


@pytest.fixture
def store(tmp_path):
    store = SqliteStore.create(tmp_path / "s.db", fingerprint="f")
    with contextlib.closing(store):
        pairs = [(f"question {i}", f"answer {i % 7}") for i in range(40)]
        store.add(answers(pairs, [i % 3 - 1 for i in range(40)]))
        yield store


def entries(view):
    """What a search can see, by id, looked up part by part."""
    found = {}
    for part in view.parts:
        segment = part.segment
        alive = np.ones(len(segment.ids), bool) if part.alive is None else part.alive
        for place in np.flatnonzero(alive):
            row = segment.rows[place]
            question = segment.question_bags.take(np.array([place]))
            response = segment.response_bags.take(np.array([row]))
            entry = int(segment.ids[place])
            assert entry not in found
            found[entry] = (
                int(segment.response_ids[row]),
                int(segment.buckets[place]),
                int(segment.counts[place]),
                tuple(question.ids.tolist()),
                tuple(response.ids.tolist()),
                tuple(segment.vectors.vectors[row].tolist()),
            )
        check_responses(part, alive)
    assert len(found) == view.size
    return found


def check_responses(part, alive):
    """Each response is there if an entry is, and names its most frequent one."""
    segment = part.segment
    for row in range(len(segment.response_ids)):
        given = np.flatnonzero((segment.rows == row) & alive)
        assert bool(len(given)) == (part.responses is None or part.responses[row])
        if len(given):
            best = given[np.argmax(segment.counts[given])]
            assert part.best_entries[row] == best


def rounded(vector):
    """As an index keeps a vector, by hand."""
    vector = vector.astype(np.float32)
    return tuple(np.rint(vector * 127 / np.abs(vector).max()).astype(int).tolist())


def fresh(store):
    """The same from the store alone."""
    changes = store.changes(0)
    return {
        int(entry): (
            int(response),
            int(bucket),
            int(count),
            tuple(np.frombuffer(features, "<u2")[::2].tolist()),
            tuple(np.frombuffer(changes.responses[response][1], "<u2")[::2].tolist()),
            rounded(np.frombuffer(changes.responses[response][2], "<f2")),
        )
        for entry, response, bucket, count, features in zip(
            changes.ids.tolist(),
            changes.response_ids.tolist(),
            changes.buckets,
            changes.counts,
            changes.question_features,
            strict=True,
        )
    }


# --- the saved segment


def test_a_saved_segment_comes_back(store, tmp_path):
    built = Segment.build(store.changes(0), BITS)
    built.save(tmp_path / "x", {"a": "b"})
    opened, meta = Segment.open(tmp_path / "x")
    assert meta["a"] == "b"
    flat = lambda segment: dict(segment_module._flatten(segment))
    for name, array in flat(built).items():
        np.testing.assert_array_equal(flat(opened)[name], array, err_msg=name)
        assert flat(opened)[name].dtype == array.dtype
    with pytest.raises(ValueError, match="read-only"):
        opened.ids[0] = 3


def test_a_chat_opens_what_was_saved_and_catches_up(store, monkeypatch):
    save_segment(store, BITS)
    store.add(answers([("new", "row")]))
    store.delete([5])
    built = []
    original = Segment.build.__func__
    count = lambda cls, changes, *rest: (
        built.append(len(changes.ids)) or original(cls, changes, *rest)
    )
    monkeypatch.setattr(Segment, "build", classmethod(count))
    assert entries(Catalogue(store, BITS).view()) == fresh(store)
    assert built == [1]  # Only what is new.


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-4000])


def _cut_header(path):
    path.write_bytes(path.read_bytes()[:100])


def _endless_header(path):
    data = bytearray(path.read_bytes())
    data[18:26] = b"\xff" * 8
    path.write_bytes(data)


def _empty(path):
    path.write_bytes(b"")


def _text(path):
    path.write_text("no index")


def _directory(path):
    path.unlink()
    path.mkdir()


def _gone(path):
    path.unlink()


def _arrays(path, change):
    arrays, meta = open_arrays(path)
    change(arrays, meta)
    write_arrays(path, arrays, meta)


def _other_layout(path):
    _arrays(path, lambda arrays, meta: meta.update(layout="1"))


def _other_version(path):
    _arrays(path, lambda arrays, meta: meta.update(version="99"))


def _other_state(path):
    _arrays(path, lambda arrays, meta: meta.update(state="0"))


def _other_bits(path):
    _arrays(path, lambda arrays, meta: meta.update(bits="7"))


def _no_meta(path):
    _arrays(path, lambda arrays, meta: meta.clear())


def _less(path):
    _arrays(path, lambda arrays, meta: arrays.pop("rows"))


DAMAGE = [
    _truncated,
    _cut_header,
    _endless_header,
    _empty,
    _text,
    _directory,
    _gone,
    _other_layout,
    _other_version,
    _other_state,
    _other_bits,
    _no_meta,
    _less,
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda f: f.__name__[1:])
def test_a_sidecar_that_does_not_fit_is_not_used(store, damage):
    save_segment(store, BITS)
    assert module.saved_view(store, BITS) is not None
    damage(segment_path(store.path))
    assert module.saved_view(store, BITS) is None
    assert entries(Catalogue(store, BITS).view()) == fresh(store)


def test_the_sidecar_of_another_store_is_not_used(store, tmp_path):
    """As many writes of as many rows, but others."""
    save_segment(store, BITS)
    other = SqliteStore.create(tmp_path / "o.db", fingerprint="f")
    with contextlib.closing(other):
        other.add(answers([(f"question {i}", f"unlike {i % 7}") for i in range(40)]))
        save_segment(other, BITS)
        segment_path(store.path).replace(segment_path(other.path))
        assert module.saved_view(other, BITS) is None


def test_a_mapped_file_may_be_replaced(store):
    save_segment(store, BITS)
    view = Catalogue(store, BITS).view()
    before = entries(view)
    store.delete(range(1, 30))
    save_segment(store, BITS)
    assert entries(view) == before


@pytest.mark.parametrize("dtype", ["|O", "nonsense", "<M8[s"])
def test_an_array_of_a_foreign_type_is_refused(tmp_path, dtype):
    write_arrays(tmp_path / "x", {"a": np.arange(9)}, {})
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data.replace(b'"<i8"', f'"{dtype}"'.encode()[:5], 1))
    assert open_arrays(tmp_path / "x") is None


# --- following a store


def test_few_segments_hold_many_writes(store, monkeypatch):
    monkeypatch.setattr(module, "_LARGE", 100)
    catalogue = Catalogue(store, BITS)
    moved, most = 0, 0
    original = Segment.build.__func__

    def counted(cls, changes, *rest):
        nonlocal moved
        moved += len(changes.ids)
        return original(cls, changes, *rest)

    monkeypatch.setattr(Segment, "build", classmethod(counted))
    for i in range(300):
        store.add(answers([(f"new {i}", f"row {i}")]))
        most = max(most, len(catalogue.view().parts))
    assert entries(catalogue.view()) == fresh(store)
    assert most <= 8
    assert moved < 300 * 12  # Each entry is moved a few times.


def test_a_response_outlives_its_best_entry(store):
    catalogue = Catalogue(store, BITS)
    for _ in range(3):
        store.add(answers([("question 7", "answer 0")]))
    (best,) = store.get([8])
    assert best.count == 4
    catalogue.view()
    store.delete([8])
    (part,) = catalogue.view().parts
    row = int(part.segment.rows[0])
    assert part.responses is not None and part.responses[row]
    assert part.segment.ids[part.best_entries[row]] == 1
    entries(catalogue.view())


def test_threads_that_look_while_others_write(store):
    catalogue = Catalogue(store, BITS)
    failed, done = [], threading.Event()

    def look():
        try:
            while not done.is_set():
                view = catalogue.view()
                assert view.size == len(entries(view))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for i in range(40):
        (added,) = store.add(answers([(f"new {i}", f"row {i % 3}")]))
        assert added in entries(catalogue.view())  # Found at once.
        if i % 3 == 0:
            store.delete([added, i])
    done.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert entries(catalogue.view()) == fresh(store)


PAIR = st.tuples(
    st.integers(0, 11).map("question {}".format),
    st.integers(0, 4).map("reply {}".format),
)


class Following(RuleBasedStateMachine):
    """Any writes in any order; what is seen equals what a new catalogue sees."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = pathlib.Path(self.folder.name) / "s.db"
        self.store = SqliteStore.create(path, fingerprint="f")
        self.catalogue = Catalogue(self.store, BITS)
        self.model = {}

    @rule(pairs=st.lists(PAIR, max_size=6), bucket=st.integers(-1, 2))
    def add(self, pairs, bucket):
        ids = self.store.add(answers(pairs, [bucket] * len(pairs))).tolist()
        for entry, pair in zip(ids, pairs, strict=True):
            _, known, count = self.model.get(entry, (pair, bucket, 0))
            self.model[entry] = pair, bucket if known == -1 else known, count + 1

    @rule(ids=st.sets(st.integers(1, 30), max_size=5))
    def delete(self, ids):
        assert self.store.delete(ids) == len(ids & set(self.model))
        self.model = {i: row for i, row in self.model.items() if i not in ids}

    @rule(pair=PAIR, data=st.data(), bucket=st.integers(-1, 2))
    def update(self, pair, data, bucket):
        if not self.model or pair in {row[0] for row in self.model.values()}:
            return
        entry = data.draw(st.sampled_from(sorted(self.model)))
        self.store.update(entry, answers([pair], [bucket]))
        self.model[entry] = pair, bucket, self.model[entry][2]

    @rule()
    def optimize(self):
        self.store.optimize()

    @rule()
    def save_and_open_again(self):
        save_segment(self.store, BITS)
        self.catalogue = Catalogue(self.store, BITS)

    @rule()
    def open_again(self):
        self.catalogue = Catalogue(self.store, BITS)

    @invariant()
    def the_store_holds_the_model(self):
        found = self.store.get(sorted(self.model))
        assert {e.id: ((e.question, e.response), e.bucket, e.count) for e in found} == (
            self.model
        )
        assert len(self.store) == len(self.model)

    @rule()
    def look(self):
        view = self.catalogue.view()
        assert entries(view) == fresh(self.store)
        assert view.version == self.store.version()

    def teardown(self):
        self.look()
        self.store.check()
        self.store.close()
        self.folder.cleanup()


Following.TestCase.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None
)
TestFollowing = Following.TestCase
