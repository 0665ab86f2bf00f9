"""The decoded cache: same batches as from the shards, one decoder a machine, whole or not there, bounded."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from datasets.evaluation.evalset import EvalSet
from datasets.feed import cache
from datasets.feed.cache import Decoded, cache_folder, decoded
from datasets.feed.loader import LocalFeed, Recipe, eval_batches
from datasets.images.view import Views
from datasets.index.addresses import read_bytes
from datasets.index.pairs import Pairs, write_index
from datasets.index.source import Source
from tests.unit.datasets.feed.test_loader import RECIPE, broken_set, same
from tests.unit.making import encoded, pairs, tar
from trainers.loop import fit
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCLSSL
from trainers.schedule import Training

SIZE = 16


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory) -> Pairs:
    return pairs(tmp_path_factory.mktemp("set"), plan={4: "a banana.", 25: "a photo of a banana."})


def kept(data: Pairs, folder: Path, identity: str = "set", size: int = SIZE) -> Decoded:
    found = decoded(data, size, folder, identity, say=pytest.fail)
    assert found is not None
    return found


def held(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir())


@pytest.mark.parametrize("views", [RECIPE.views, Views(size=SIZE), Views(size=SIZE, augment="simclr")])
@pytest.mark.parametrize("workers", [0, 1])
def test_batches_equal_those_from_the_shards(poisoned, tmp_path, views, workers):
    recipe, store = replace(RECIPE, views=views), kept(poisoned, tmp_path)
    shards = list(LocalFeed(poisoned, recipe, batch_size=8, steps=6).batches())
    ours = list(LocalFeed(poisoned, recipe, batch_size=8, steps=6, decoded=store, workers=workers).batches())
    assert len(ours) == 6 and all(same(a, b) for a, b in zip(shards, ours))
    assert any(batch["poisoned"].any() for batch in ours) and held(tmp_path) == [".views"]


def test_evaluation_batches_equal_those_from_the_shards(poisoned, tmp_path):
    clean = Pairs(poisoned.index, poisoned.urls)
    store = kept(clean, tmp_path)
    for rank in range(2):
        shards, ours = (list(eval_batches(clean, RECIPE, 7, rank, 2, decoded=d)) for d in (None, store))
        assert len(ours) == 3 and all(same(a, b) for a, b in zip(shards, ours)) and "image_triggered" in ours[0]


def test_a_cleaning_ends_with_the_same_weights(poisoned, tmp_path):
    recipe = replace(RECIPE, views=Views(size=32))
    training = Training(epochs=2, batch_size=8, lr=1e-3, warmup_steps=0)
    weights = []
    for store in (None, kept(poisoned, tmp_path, size=32)):
        encoder = TinyCLIP(vision_width=8, embed_dim=16).build(0)
        feed = LocalFeed(poisoned, recipe, batch_size=8, steps=6, decoded=store)
        fit(encoder, MMCLSSL(), training, feed, tmp_path / f"{store is None}")
        weights.append(encoder.model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_threads_change_no_byte(poisoned, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHUNK", 4)
    files = [decoded(poisoned, SIZE, tmp_path, f"{threads}", threads=threads).path.read_bytes() for threads in (1, 3)]
    assert files[0] == files[1]


def test_what_determines_the_views_names_the_file(poisoned, tmp_path, monkeypatch):
    first = kept(poisoned, tmp_path)
    assert kept(poisoned, tmp_path).path == first.path
    others = {kept(poisoned, tmp_path, "other").path, kept(poisoned, tmp_path, size=8).path}
    monkeypatch.setattr(cache, "decoder", lambda: "another decoder")
    assert len({first.path, kept(poisoned, tmp_path).path} | others) == 4


@pytest.mark.parametrize("layout", ["folder", "tar"])
def test_a_file_replaced_by_another_of_its_size_is_decoded_anew(tmp_path, layout):
    pictures = [encoded(np.full((20, 20, 3), colour, np.uint8), "BMP") for colour in ((255, 0, 0), (0, 0, 255))]
    where = tmp_path / "set" / "0.tar" if layout == "tar" else tmp_path / "set" / "banana" / "0.bmp"
    where.parent.mkdir(parents=True)

    def put(data: bytes) -> None:
        if layout == "tar":
            tar(where, [("0.jpg", data), ("0.txt", b"a thing")])
        else:
            where.write_bytes(data)

    put(pictures[0])
    if layout == "tar":
        table, urls = Source(urls=str(where)).index_shard(0, str(where)), [str(where)]
    else:
        table, urls, *_ = EvalSet(path=str(tmp_path / "set")).load()
    write_index([table], tmp_path / "index.arrow")
    data = Pairs(tmp_path / "index.arrow", urls)
    (tmp_path / "cache").mkdir()
    red, again = kept(data, tmp_path / "cache"), kept(data, tmp_path / "cache")
    assert red.path == again.path and red[np.array([0])].max(axis=(0, 1, 2)).tolist() == [255, 0, 0]
    before = where.stat()
    put(pictures[1])
    os.utime(where, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    read_bytes.__globals__["_reader"].cache_clear()
    assert where.stat().st_size == before.st_size
    assert kept(data, tmp_path / "cache")[np.array([0])].max(axis=(0, 1, 2)).tolist() == [0, 0, 255]


def test_two_that_start_together_decode_once(poisoned, tmp_path, monkeypatch):
    calls, real = [], cache.canonical_views
    monkeypatch.setattr(cache, "CHUNK", 5)
    monkeypatch.setattr(cache, "canonical_views", lambda *args: (calls.append(1), time.sleep(0.02), real(*args))[2])
    found: list[Decoded] = []
    threads = [threading.Thread(target=lambda: found.append(kept(poisoned, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(calls) == 6 and held(tmp_path) == [".views"]


def decode_slowly(data: Pairs, folder: Path, reached: multiprocessing.synchronize.Event) -> None:
    real, cache.CHUNK = cache.canonical_views, 5

    def slow(*args: object) -> np.ndarray:
        if reached_once:
            reached.set()
            time.sleep(60)
        reached_once.append(1)
        return real(*args)  # type: ignore[arg-type]

    reached_once: list[int] = []
    cache.canonical_views = slow  # type: ignore[assignment]
    decoded(data, SIZE, folder, "set")


def test_a_decoder_that_is_killed_leaves_nothing_taken_for_whole(poisoned, tmp_path):
    context = multiprocessing.get_context("spawn")
    reached = context.Event()
    process = context.Process(target=decode_slowly, args=(poisoned, tmp_path, reached))
    process.start()
    assert reached.wait(60) and process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert held(tmp_path) == [".partial"]
    other = kept(Pairs(poisoned.index, poisoned.urls, rows=np.arange(3)), tmp_path, "other")
    assert held(tmp_path) == [".views"], "the next one that needs room removes what was left"
    assert len(other) == 3 and np.array_equal(kept(poisoned, tmp_path)[np.arange(3)], other[np.arange(3)])


def test_a_file_of_the_wrong_size_is_made_again(poisoned, tmp_path):
    whole = kept(poisoned, tmp_path)
    expected, path = whole[np.arange(30)], whole.path
    del whole
    path.write_bytes(path.read_bytes()[:-1])
    assert np.array_equal(kept(poisoned, tmp_path)[np.arange(30)], expected)


@pytest.mark.parametrize("where", [0, 7 * SIZE * SIZE * 3 + 100, -1])
def test_a_flipped_byte_is_found_when_the_picture_is_read(poisoned, tmp_path, where):
    whole = decoded(poisoned, SIZE, tmp_path, "x")
    assert whole is not None and whole[np.arange(len(poisoned))].shape == (len(poisoned), SIZE, SIZE, 3)
    content = bytearray(whole.path.read_bytes())
    content[where] ^= 4
    whole.path.write_bytes(content)
    views, damaged = decoded(poisoned, SIZE, tmp_path, "x"), {0: 0, -1: len(poisoned) - 1}.get(where, 7)
    assert views is not None
    others = np.array([position for position in range(len(poisoned)) if position != damaged])
    assert len(views[others]) == len(others)
    with pytest.raises(InputError, match=rf"x?\.views is damaged: picture {damaged} is not as it was decoded. Delete"):
        views[np.array([1, damaged])]


def test_without_room_one_line_is_said_and_nothing_kept(poisoned, tmp_path, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(cache, "SPARE_BYTES", 1 << 60)
    assert decoded(poisoned, SIZE, tmp_path, "set", say=said.append) is None
    assert len(said) == 1 and "no room" in said[0] and not held(tmp_path)


def test_a_disk_that_fills_meanwhile_is_no_failure(poisoned, tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    said: list[str] = []
    monkeypatch.setattr(cache.os, "fsync", full)
    assert decoded(poisoned, SIZE, tmp_path, "set", say=said.append) is None
    assert len(said) == 1 and "No space left on device" in said[0] and not held(tmp_path)
    assert decoded(poisoned, SIZE, tmp_path / "gone", "set", say=said.append) is None and len(said) == 2


def test_the_longest_unused_makes_room_but_never_one_in_use(poisoned, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "BUDGET_BYTES", 3 * 30 * (SIZE * SIZE * 3 + 4))
    stores = {name: kept(poisoned, tmp_path, name) for name in "abc"}
    for age, name in enumerate("cba"):  # a was used longest ago, but is still open
        os.utime(stores[name].path, (1000 - age, 1000 - age))
    paths = {name: store.path for name, store in stores.items()}
    del stores["b"], stores["c"]
    kept(poisoned, tmp_path, "c")  # used again
    kept(poisoned, tmp_path, "d")
    assert {name: path.exists() for name, path in paths.items()} == {"a": True, "b": False, "c": True}


def test_an_open_cache_travels_to_another_process(poisoned, tmp_path):
    store = kept(poisoned, tmp_path)
    again = pickle.loads(pickle.dumps(store))
    del store
    assert not cache._remove_unused(again.path) and len(again[np.array([3, 1])]) == 2


def test_an_unreadable_picture_is_the_same_error(tmp_path):
    data = broken_set(tmp_path)
    messages = []
    for attempt in (
        lambda: list(LocalFeed(data, Recipe(views=Views(size=SIZE)), batch_size=4, steps=1).batches()),
        lambda: decoded(data, SIZE, tmp_path / "cache", "set"),
    ):
        (tmp_path / "cache").mkdir(exist_ok=True)
        with pytest.raises(InputError) as caught:
            attempt()
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and not held(tmp_path / "cache")


def test_the_folder_of_its_own_is_closed_to_others(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    folder = cache_folder("auto")
    assert folder is not None and folder.stat().st_mode & 0o777 == 0o700 and cache_folder("auto") == folder
    assert cache_folder("off") is None and cache_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    folder.chmod(0o755)
    with pytest.raises(InputError, match="closed to others"):
        cache_folder("auto")
    folder.rmdir()
    folder.symlink_to(tmp_path / "a")
    with pytest.raises(InputError, match="closed to others"):
        cache_folder("auto")


@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe", "symlink to nothing"])
def test_what_others_left_under_the_files_name_is_not_written_through(poisoned, tmp_path, kind):
    folder, target, told = tmp_path / "cache", tmp_path / "target", list[str]()
    folder.mkdir()
    made = kept(poisoned, folder)
    name = made.path.with_suffix(".partial")
    del made
    name.with_suffix(".views").unlink()
    if kind != "symlink to nothing":
        target.write_bytes(b"precious")
    if kind == "pipe":
        os.mkfifo(name)
    elif kind == "hard link":
        os.link(target, name)
    else:
        name.symlink_to(target)
    assert decoded(poisoned, SIZE, folder, "set", say=told.append) is None
    assert len(told) == 1 and "cannot be kept" in told[0] and "read from the shards" in told[0]
    assert not target.exists() if kind == "symlink to nothing" else target.read_bytes() == b"precious"


def test_a_folder_that_others_can_write_is_refused(tmp_path):
    for mode in (0o777, 0o1777, 0o703, 0o775, 0o2770):
        (tmp_path / "open").mkdir(exist_ok=True)
        (tmp_path / "open").chmod(mode)
        with pytest.raises(InputError, match=f"open can be written by other users .mode {mode:04o}"):
            cache_folder(str(tmp_path / "open"))
    (tmp_path / "open").chmod(0o755)
    assert cache_folder(str(tmp_path / "open")) == tmp_path / "open"
    before = os.umask(0)
    try:
        made = cache_folder(str(tmp_path / "new"))
    finally:
        os.umask(before)
    assert made is not None and cache_folder(str(made)) == made


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a folder away")
def test_a_folder_of_another_user_is_refused(tmp_path):
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(InputError, match="belongs to another user"):
        cache_folder(str(tmp_path / "theirs"))
