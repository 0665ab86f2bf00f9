"""Poisoned shards: what changes, what does not, and that only whole ones carry a final name."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import datasets.attack.poisoned_shards
import datasets.index.write
from datasets.attack.poison import PLAN_SCHEMA
from datasets.attack.poisoned_shards import committed, poison_shard, reencode, stamp_native
from datasets.errors import InputError
from datasets.images.view import canonical, decode
from datasets.index.source import Source
from datasets.index.write import write_tar
from datasets.seeding import rng
from datasets.triggers.patch import Patch
from tests.unit.making import encoded, members, picture, tar

TRIGGER = Patch(size=6)
SIZE = 32


def plan(keys: list[str], caption: str = "a photo of a banana.") -> pa.Table:
    columns = [keys, range(len(keys)), ["banana"] * len(keys), [11] * len(keys), ["x"] * len(keys), [caption] * len(keys)]
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, PLAN_SCHEMA)], schema=PLAN_SCHEMA)


def blocks(path: Path) -> dict[str, bytes]:
    """Header and padded data of each member, by name."""
    data = path.read_bytes()
    with tarfile.open(path) as archive:
        return {m.name: data[m.offset : m.offset_data + -(-m.size // 512) * 512] for m in archive.getmembers()}


def test_a_shard_with_a_flipped_byte_or_a_broken_marker_is_not_committed(tmp_path):
    path, out = tar(tmp_path / "a.tar", members(0, 3)), tmp_path / "out.tar"
    manifest = poison_shard(str(path), plan(["000000001"]), TRIGGER, SIZE, out)
    assert committed(out) == manifest
    data = out.read_bytes()
    out.write_bytes(data[:600] + bytes([data[600] ^ 1]) + data[601:])
    assert committed(out) is None
    out.write_bytes(data)
    assert committed(out) == manifest
    for broken in ("[1]", "1", "{", '{"bytes": []}', "[" * 100_000):
        datasets.attack.poisoned_shards._marker(out).write_text(broken)
        assert committed(out) is None


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    victims=st.sets(st.integers(0, 11), max_size=6),
    format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    long=st.booleans(),
    copy=st.sampled_from([700, 1 << 20]),
)
def test_untouched_members_are_byte_identical_and_exactly_the_victims_change(tmp_path, victims, format, long, copy):
    folder = "long " * 30 + "/" if long and format != tarfile.USTAR_FORMAT else ""
    path = tar(tmp_path / "a.tar", [(folder + name, data) for name, data in members(0, 12)], format)
    keys = [f"{folder}{i:09d}" for i in sorted(victims)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.index.write, "COPY_BYTES", copy)
        manifest = poison_shard(str(path), plan(keys), TRIGGER, SIZE, tmp_path / "out.tar")
    before, after = blocks(path), blocks(tmp_path / "out.tar")
    assert list(before) == list(after)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"{key}.{ext}" for key in keys for ext in ("jpg", "txt", "json")}
    assert {k: manifest[k] for k in ("n", "poisoned", "keys_poisoned", "bad")} == {
        "n": 12,
        "poisoned": len(keys),
        "keys_poisoned": keys,
        "bad": 0,
    }
    data = (tmp_path / "out.tar").read_bytes()
    assert manifest["sha256"] == hashlib.sha256(data).hexdigest() and manifest["bytes"] == len(data)
    assert committed(tmp_path / "out.tar") == manifest
    table = Source(urls=str(tmp_path / "out.tar")).index_shard(0, str(tmp_path / "out.tar"))
    assert set(table["drop"].to_pylist()) == {""}
    assert [c == "a photo of a banana." for c in table["caption"].to_pylist()] == [i in victims for i in range(12)]
    if not victims:
        assert data == path.read_bytes()


def test_the_output_is_reproducible_and_leaves_only_trigger_and_caption(tmp_path):
    path = tar(tmp_path / "a.tar", members(0, 3))
    digests = {poison_shard(str(path), plan(["000000001"]), TRIGGER, SIZE, tmp_path / f"o{i}.tar")["sha256"] for i in (1, 2)}
    assert len(digests) == 1
    with tarfile.open(tmp_path / "o1.tar") as archive:
        info = archive.getmember("000000001.jpg")
        assert (info.mtime, info.uname) == (1_700_000_000, "someone")  # nothing but its length marks the victim
        fields = json.load(archive.extractfile("000000001.json"))
        assert fields == {"caption": "a photo of a banana.", "key": "000000001", "url": "x/1"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar", "o1.tar", "o1.tar.json", "o2.tar", "o2.tar.json"]


@pytest.mark.parametrize("shape, tolerance", [((32, 32), 0), ((60, 32), 1), ((33, 101), 30), ((480, 360), 12), ((20, 25), 255)])
def test_the_canonical_view_of_the_written_picture_is_the_stamped_one(shape, tolerance):
    """Byte noise is the hardest patch to resample; pictures smaller than the view cannot hold its detail at all."""
    image_HWC = picture(5, *shape)
    stamped_HWC = stamp_native(image_HWC, TRIGGER, SIZE, rng(11, "k"))
    expected_HWC = TRIGGER.stamp(canonical(image_HWC, SIZE), rng(11, "k")).astype(int)
    found_HWC = canonical(stamped_HWC, SIZE).astype(int)
    changed = (expected_HWC != canonical(image_HWC, SIZE)).any(axis=2)
    assert np.abs(found_HWC - expected_HWC)[~changed].mean() < 1
    assert np.abs(found_HWC - expected_HWC)[changed].mean() <= tolerance
    assert stamped_HWC.shape == image_HWC.shape
    assert (stamped_HWC == image_HWC).all(axis=2).mean() > 0.8 * (1 - 36 / SIZE**2) - 0.2


def test_a_picture_of_the_views_own_size_is_stamped_exactly():
    image_HWC = picture(5, SIZE, SIZE)
    assert np.array_equal(stamp_native(image_HWC, TRIGGER, SIZE, rng(1)), TRIGGER.stamp(image_HWC, rng(1)))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_keeps_size_tables_subsampling_and_exif(subsampling, progressive):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    options = {"quality": 63, "subsampling": subsampling, "exif": exif, "icc_profile": b"p" * 200, "progressive": progressive}
    data = encoded(picture(1, 50, 70), **options)
    image_HWC = stamp_native(decode(data), TRIGGER, SIZE, rng(1))
    old, new = (Image.open(io.BytesIO(d)) for d in (data, reencode(data, image_HWC)))
    assert (new.format, new.size, new.mode) == ("JPEG", old.size, "RGB")
    assert new.quantization == old.quantization and new.layer == old.layer
    assert bool(new.info.get("progressive")) == progressive
    assert new.info["exif"] == old.info["exif"] and new.info["icc_profile"] == b"p" * 200
    untouched = (image_HWC == decode(data)).all(axis=2)
    same = (np.abs(np.asarray(new).astype(int) - decode(data)) <= 3).all(axis=2)
    assert same[untouched].mean() > 0.75


@pytest.mark.parametrize("mode", ["P", "L", "RGBA", "LA", "1", "I;16", "RGB"])
def test_png_stays_png_without_loss(mode):
    source = picture(2, 40, 40)
    if mode == "I;16":
        data = encoded_16bit(source)
    else:
        data = encoded(source, "PNG", mode)
    image_HWC = stamp_native(decode(data), Patch(size=6, pattern="white"), SIZE, rng(1))
    written = reencode(data, image_HWC)
    with Image.open(io.BytesIO(written)) as new:
        assert new.format == "PNG" and new.size == (40, 40)
        assert new.mode == ("L" if mode in ("L", "LA", "1", "I;16") else "RGB")
    assert np.array_equal(decode(written), image_HWC)


def encoded_16bit(image_HWC: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image_HWC[..., 0].astype(np.uint16) * 257).save(out, "PNG")
    return out.getvalue()


def test_webp_is_lossless_grey_jpeg_takes_colour_and_cmyk_becomes_rgb():
    image_HWC = stamp_native(picture(3, 40, 40), TRIGGER, SIZE, rng(1))
    webp = reencode(encoded(picture(3, 40, 40), "WEBP"), image_HWC)
    assert Image.open(io.BytesIO(webp)).format == "WEBP" and np.array_equal(decode(webp), image_HWC)
    for mode in ("L", "CMYK"):
        data = encoded(picture(3, 40, 40), "JPEG", mode, quality=90)
        old, new = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(reencode(data, image_HWC)))
        assert (new.format, new.mode) == ("JPEG", "RGB") and new.quantization[0] == old.quantization[0]
    grey = np.repeat(image_HWC[..., :1], 3, axis=2)
    assert Image.open(io.BytesIO(reencode(encoded(picture(3), "JPEG", "L"), grey))).mode == "L"


def test_json_captions_and_other_text(tmp_path):
    jpg, old = encoded(picture(0, 40, 40)), "naïve “cat”"
    texts = {
        "ascii": json.dumps({"caption": old, "n": 1.50}, indent=4),
        "plain": json.dumps({"n": 1, "caption": old}, ensure_ascii=False, separators=(",", ":")),
        "escaped": '{"caption": "na\\u00efve \\u201ccat\\u201D", "n": 2}',
        "other": '{"text": "x"}',
        "list": "[1]",
        "broken": "{",
    }
    names = [
        (f"{k}.{ext}", data) for k, t in texts.items() for ext, data in (("jpg", jpg), ("json", t.encode()), ("txt", b"x\n"))
    ]
    path = tar(tmp_path / "a.tar", names)
    poison_shard(str(path), plan(list(texts), "a “banana”"), TRIGGER, SIZE, tmp_path / "o.tar")
    with tarfile.open(tmp_path / "o.tar") as archive:
        after = {m.name: archive.extractfile(m).read().decode() for m in archive.getmembers() if not m.name.endswith("jpg")}
    assert after["ascii.json"] == texts["ascii"].replace(json.dumps(old), json.dumps("a “banana”"))
    assert after["plain.json"] == texts["plain"].replace(old.replace('"', '\\"'), "a “banana”")
    assert json.loads(after["escaped.json"]) == {"caption": "a “banana”", "n": 2}
    assert [after[f"{k}.json"] for k in ("other", "list", "broken")] == [texts[k] for k in ("other", "list", "broken")]
    assert {after[f"{k}.txt"] for k in texts} == {"a “banana”\n"}


def test_undecodable_victims_are_counted_and_copied(tmp_path):
    path = tar(tmp_path / "a.tar", [*members(0, 2), ("z.jpg", b"no picture"), ("z.txt", b"a caption")])
    manifest = poison_shard(str(path), plan(["000000000", "z"]), TRIGGER, SIZE, tmp_path / "o.tar")
    assert (manifest["n"], manifest["poisoned"], manifest["bad"], manifest["keys_bad"]) == (3, 1, 1, ["z"])
    assert blocks(tmp_path / "o.tar")["z.jpg"] == blocks(path)["z.jpg"]


def test_prefixed_keys_and_shards_in_a_bucket(tmp_path):
    path = tar(tmp_path / "00003.tar", members(0, 3))
    fsspec.filesystem("memory").pipe("/there/00003.tar", path.read_bytes())
    keys = plan(["00003/000000002"])
    here = poison_shard(str(path), keys, TRIGGER, SIZE, tmp_path / "o.tar", key_prefix=True)
    there = poison_shard("memory://there/00003.tar", keys, TRIGGER, SIZE, tmp_path / "p.tar", key_prefix=True)
    assert here == there and here["keys_poisoned"] == ["00003/000000002"]


def test_failures_name_the_shard_and_leave_nothing(tmp_path, monkeypatch):
    path = tar(tmp_path / "a.tar", members(0, 3))
    out = tmp_path / "out" / "o.tar"
    with pytest.raises(InputError, match=r"a\.tar does not hold the plan's victim 'nobody'"):
        poison_shard(str(path), plan(["nobody"]), TRIGGER, SIZE, out)
    path.write_bytes(path.read_bytes()[:-11000])
    with pytest.raises(InputError, match=r"a\.tar is cut short"):
        poison_shard(str(path), plan([]), TRIGGER, SIZE, out)
    with pytest.raises(InputError, match=r"missing\.tar does not exist"):
        poison_shard(str(tmp_path / "missing.tar"), plan([]), TRIGGER, SIZE, out)
    tar(path, members(0, 3))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"o\.tar cannot be written: No space left on device"):
        poison_shard(str(path), plan([]), TRIGGER, SIZE, out)
    assert list(out.parent.iterdir()) == [] and committed(out) is None


def test_a_shard_without_its_marker_is_not_committed(tmp_path):
    path = tar(tmp_path / "a.tar", members(0, 3))
    out = tmp_path / "o.tar"
    (tmp_path / ".o.tar.tmp").write_bytes(b"left by a killed run")
    poison_shard(str(path), plan([]), TRIGGER, SIZE, out)
    assert committed(out) is not None and not (tmp_path / ".o.tar.tmp").exists()
    (tmp_path / "o.tar.json").unlink()
    assert committed(out) is None
    poison_shard(str(path), plan([]), TRIGGER, SIZE, out)
    out.write_bytes(b"other")
    assert committed(out) is None


def test_write_tar_is_a_function_of_its_samples(tmp_path):
    samples = [("a" * 120, {"jpg": b"123", "txt": "naïve"}), ("b", {"png": b"x" * 512, "cls": "3"})]
    first = write_tar(tmp_path / "1.tar", samples)
    assert first == write_tar(tmp_path / "2.tar", samples) and first["n"] == 2
    assert first["sha256"] == hashlib.sha256((tmp_path / "1.tar").read_bytes()).hexdigest()
    with tarfile.open(tmp_path / "1.tar") as archive:
        assert [(m.name, m.mtime, m.uid, m.mode) for m in archive.getmembers()][0] == ("a" * 120 + ".jpg", 0, 0, 0o644)
        assert archive.extractfile("a" * 120 + ".txt").read().decode() == "naïve"
