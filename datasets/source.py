"""Where samples come from: webdataset tars, Parquet, CSV/TSV of paths; each shard becomes rows of one index.

An index row says where a picture's bytes lie, so that reading is by offset and order is a matter of row numbers.
How `member`, `offset` and `length` address a picture, whatever the source:

* member inside a tar: `member` its name, `offset` and `length` its bytes;
* a file of its own (CSV, Parquet of paths): `member` its path relative to the table's folder, `offset` 0; the shard of an
  evaluation set can be the folder itself, and then `member` is the path as `storage.name_text` writes it;
* a Parquet cell: `member` is `parquet:<column>`, `offset` the row number.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import posixpath
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from datasets import tables
from datasets.captions import clean_drop_reason
from datasets.component import Component
from datasets.errors import InputError
from datasets.storage import Reader, expand, is_remote, name_of, read_range, size_of
from datasets.tar import Sample, samples
from datasets.view import DecodeError, decode

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.int32()),
        ("member", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("caption", pa.string()),
        ("label", pa.int32()),
        ("drop", pa.string()),
    ]
)
EXTENSIONS = {
    "webdataset": (".tar",),
    "parquet": (".parquet", ".pq"),
    "csv": (".csv", ".tsv", ".tab"),
}
_PARQUET_CELL = "parquet:"


@dataclass(frozen=True, kw_only=True)
class Source(Component):
    """Pairs of pictures and captions on disk or in a bucket."""

    urls: str | tuple[str, ...]
    """Paths or URIs of shards: brace ranges (`{0000..0575}`), globs and folders are expanded."""
    format: str = "auto"
    """`webdataset`, `parquet`, `csv`, or `auto`: by the file's extension."""
    image_key: str = "image"
    """Column with the picture (Parquet: bytes, {bytes, path} or a path; CSV: a path). Tars go by file extension."""
    caption_key: str = "caption"
    """Column with the caption; in tars the field of the json member, read where there is no txt member."""
    label_key: str = "label"
    """Column or json field with the class number, where there is one; in tars a `cls` member comes first."""
    delimiter: str = "auto"
    """Of CSV files; `auto`: a tab for .tsv and .tab, else a comma."""
    key_prefix: bool = False
    """Put `<shard's name>/` before each key, for sets merged from several downloads that number from zero."""
    min_caption_length: int = 0
    """Shorter captions (in characters) are dropped."""
    verify: str = "decode"
    """How pictures are checked when they are indexed: `decode`, `header` (its format and size alone) or `none`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, accepted in (("format", ("auto", *EXTENSIONS)), ("verify", ("decode", "header", "none"))):
            if getattr(self, field) not in accepted:
                raise InputError(f"source.{field} is {getattr(self, field)!r}; accepted are {', '.join(accepted)}.")

    def shards(self) -> list[str]:
        """The shards' absolute paths or URIs in the order of `urls`. Raises `InputError` for what does not exist."""
        patterns = (self.urls,) if isinstance(self.urls, str) else tuple(self.urls)
        kinds = tuple(EXTENSIONS.values()) if self.format == "auto" else (EXTENSIONS[self.format],)
        found = [url for pattern in patterns for url in expand(pattern, kinds)]
        if not found:
            raise InputError("source.urls names no shard; give at least one path, folder, glob or brace range.")
        if len(set(found)) < len(found):
            twice = next(url for url in found if found.count(url) > 1)
            raise InputError(f"source.urls names {twice} twice; each shard is read once.")
        return found

    def identity(self) -> list[dict]:
        """Per shard its name, size and a digest of its first and last 64 KiB (of all of it for CSV): no path, no time."""
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(self._shard_identity, self.shards()))

    def _shard_identity(self, url: str) -> dict:
        digest, edge = hashlib.blake2b(digest_size=16), 64 << 10
        with Reader(url) as reader:
            whole = self._format_of(url) == "csv"
            for start in range(0, reader.size, edge) if whole else (0, max(0, reader.size - edge)):
                digest.update(reader.read(start, edge))
            return {"name": posixpath.basename(url), "size": reader.size, "digest": digest.hexdigest()}

    def index_shard(self, number: int, url: str) -> pa.Table:
        """The rows of shard `number` (its place in `shards()`), `INDEX_SCHEMA`; unusable samples carry a drop reason.

        A row that only its caption disqualifies holds all else, its label included. Raises `InputError` naming the
        shard for what concerns the whole shard: missing, empty, cut short, no tar, a column that is not there.
        """
        rows = _Rows(source=self, number=number, stem=_stem(url))
        {"webdataset": self._index_tar, "parquet": self._index_parquet, "csv": self._index_csv}[self._format_of(url)](url, rows)
        if not rows.keys:
            raise InputError(f"{url} holds no samples.")
        return rows.table()

    def _format_of(self, url: str) -> str:
        if self.format != "auto":
            return self.format
        for name, extensions in EXTENSIONS.items():
            if url.lower().endswith(extensions):
                return name
        if url.lower().endswith((".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")):
            raise InputError(f"{url} is compressed, so nothing in it can be read by offset; decompress it first.")
        accepted = ", ".join(ext for extensions in EXTENSIONS.values() for ext in extensions)
        raise InputError(f"{url}: the extension tells no format ({accepted}); set source.format to say which it is.")

    def _index_tar(self, url: str, rows: _Rows) -> None:
        seen: dict[str, Sample] = {}
        with Reader(url) as reader:
            for sample in samples(reader):
                image = sample.image()
                caption, label = tar_texts(reader, sample, self.caption_key, self.label_key)
                if not (image or caption is not None or label >= 0):
                    continue  # a stray file, neither picture nor caption
                first = seen.setdefault(sample.key, sample)
                if first is not sample and not (first.image() and image):
                    raise InputError(
                        f"{url}: the files of {sample.key!r} are not side by side (byte "
                        f"{min(m.header for m in first.members.values())} and byte "
                        f"{min(m.header for m in sample.members.values())}); write each sample's files together."
                    )
                if image is None:
                    rows.add(sample.key, "", 0, 0, caption, label, None, "no_image")
                else:
                    read = functools.partial(reader.read, image.offset, image.size)
                    drop = "" if first is sample else "duplicate_key"
                    rows.add(sample.key, image.name, image.offset, image.size, caption, label, read, drop)

    def _index_parquet(self, url: str, rows: _Rows) -> None:
        start = 0
        file = tables.open_parquet(url)
        keys = [name for name in ("__key__", "key") if name in file.schema_arrow.names][:1]
        for batch in tables.parquet_batches(file, url, self.image_key, self.caption_key, self.label_key, keys):
            names = batch.column(keys[0]).to_pylist() if keys else [None] * len(batch)
            captions, labels = tables.texts(batch, self.caption_key), tables.texts(batch, self.label_key)
            for i, (name, caption, label) in enumerate(zip(names, captions, labels)):
                key = str(name) if name is not None else f"{rows.stem}-{start + i:08d}"
                value = batch.column(self.image_key)[i].as_py()
                data, path = tables.picture(value)
                if data is not None:
                    read, member = (lambda data=data: data), _PARQUET_CELL + self.image_key
                    rows.add(key, member, start + i, len(data), caption, tables.label(label), read, unique=True)
                else:
                    self._add_file(url, rows, key, path, caption, tables.label(label))
            start += len(batch)

    def _index_csv(self, url: str, rows: _Rows) -> None:
        seen: dict[str, list[str | None]] = {}
        for path, caption, label in tables.csv_rows(url, self.delimiter, self.image_key, self.caption_key, self.label_key):
            key = posixpath.normpath(path) if path and "://" not in path else path
            captions = seen.setdefault(key, [])
            duplicate = caption in captions
            if not duplicate:  # one picture with several captions, as in Flickr30k and COCO, is several samples
                captions.append(caption)
                key = f"{key}#{len(captions)}" if len(captions) > 1 else key
            self._add_file(url, rows, key, path, caption, label, "duplicate_key" if duplicate else "")
        if rows.keys and all(drop == "no_image" for drop in rows.drops):
            tried = rows.first_missing
            raise InputError(f"{url}: none of its {len(rows.keys)} pictures exists; the first was looked for at {tried}.")

    def _add_file(
        self, url: str, rows: _Rows, key: str, path: str | None, caption: str | None, label: int, drop: str = ""
    ) -> None:
        place = _file_place(_folder(url), path) if path else ""
        if place.startswith(("http://", "https://")):
            raise InputError(f"{url}: {path} is a web address; `cleansweep fetch` makes shards of such a list.")
        length = size_of(place) if place and not (not is_remote(place) and os.path.isdir(place)) else -1
        if length < 0:
            rows.first_missing = rows.first_missing or place or "(an empty path)"
            rows.add(key, path or "", 0, 0, caption, label, None, "no_image")
        else:
            rows.add(key, path or "", 0, length, caption, label, lambda: _read_file(place), drop)


class _Rows:
    """Columns of an index table as they grow, with the checks that every format shares."""

    def __init__(self, source: Source, number: int, stem: str) -> None:
        self.source, self.number, self.stem = source, number, stem
        self.keys: list[str] = []
        self.drops: list[str] = []
        self.first_missing = ""
        self._rest: list[tuple[str, int, int, str, int]] = []
        self._seen: set[str] = set()

    def add(
        self,
        key: str,
        member: str,
        offset: int,
        length: int,
        caption: str | None,
        label: int,
        read: Callable[[], bytes] | None,
        drop: str = "",
        unique: bool = False,
    ) -> None:
        """Append a row. `read` gives the picture's bytes; `unique`: look for a repeated key here."""
        if unique and not drop:
            drop = "duplicate_key" if key in self._seen else ""
            self._seen.add(key)
        if not drop and read is not None and not _looks_right(read, self.source.verify):
            drop = "undecodable"
        if not drop:
            drop = "no_caption" if caption is None else clean_drop_reason(caption, self.source.min_caption_length)
        self.keys.append(f"{self.stem}/{key}" if self.source.key_prefix else key)
        self.drops.append(drop)
        self._rest.append((member, offset, length, caption or "", label))

    def table(self) -> pa.Table:
        members, offsets, lengths, captions, labels = zip(*self._rest)
        shard = np.full(len(self.keys), self.number, np.int32)
        columns = [self.keys, shard, members, offsets, lengths, captions, labels, self.drops]
        return pa.table([pa.array(c, f.type) for c, f in zip(columns, INDEX_SCHEMA)], schema=INDEX_SCHEMA)


def mark_duplicates(table: pa.Table, urls: Sequence[str] = ()) -> pa.Table:
    """The joined index with no key kept twice.

    A key that comes twice in one shard keeps its first row (the later get `duplicate_key`); one that two shards share
    raises `InputError` naming them (by `urls`, if given).
    """
    kept = pc.equal(table["drop"], "")
    keys = table["key"].filter(kept)
    if pc.count_distinct(keys).as_py() == len(keys):
        return table
    counts = pc.value_counts(keys)
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    among = np.flatnonzero(pc.and_(kept, pc.is_in(table["key"], value_set=repeated)).to_numpy())
    first: dict[str, int] = {}
    drops = table["drop"].to_pylist()
    for row, key, shard in zip(among, table["key"].take(among).to_pylist(), table["shard"].take(among).to_pylist()):
        if key not in first:
            first[key] = shard
        elif first[key] == shard:
            drops[row] = "duplicate_key"
        else:
            names = [urls[n] if n < len(urls) else f"shard {n}" for n in (first[key], shard)]
            raise InputError(
                f"the key {key!r} is in {names[0]} and in {names[1]}; set source.key_prefix to put the shard's name "
                "before each key."
            )
    return table.set_column(table.schema.get_field_index("drop"), "drop", pa.array(drops, pa.string()))


def tar_texts(reader: Reader, sample: Sample, caption_key: str, label_key: str) -> tuple[str | None, int]:
    """Caption (txt, else the json field; None without either) and label (cls, else the json field; -1 without)."""
    caption: str | None = None
    label = -1
    json_fields: dict | None = None
    if (txt := sample.members.get("txt")) is not None:
        caption = reader.read(txt.offset, txt.size).decode("utf-8", "replace").removeprefix("\ufeff").strip()
    if (cls := sample.members.get("cls")) is not None:
        label = tables.label(reader.read(cls.offset, cls.size).decode("utf-8", "replace"))
    if (member := sample.members.get("json")) is not None and (caption is None or label < 0):
        json_fields = tables.json_object(reader.read(member.offset, member.size))
        if caption is None and isinstance(json_fields.get(caption_key), str):
            caption = json_fields[caption_key].strip()
        if label < 0:
            label = tables.label(json_fields.get(label_key))
    return caption, label


def read_bytes(url: str, offset: int, length: int, member: str) -> bytes:
    """The picture's bytes of one index row whose shard is `url` (see the top of this file for the addressing).

    Raises `InputError` naming the file if it is gone or shorter than when it was indexed.
    """
    if member.startswith(_PARQUET_CELL):
        return _read_cell(url, offset, member.removeprefix(_PARQUET_CELL))
    try:
        if offset == 0:  # inside a tar a header comes first, so this is a file of its own
            return _read_file(file_of(url, offset, member))
        data = read_range(url, offset, length) if is_remote(url) else _reader(url).read(offset, length)
    except OSError as error:
        raise InputError(f"{url}: {member} cannot be read: {error}") from None
    if len(data) < length:
        raise InputError(f"{url} ends before byte {offset + length}: it has changed since it was indexed.")
    return data


def file_of(url: str, offset: int, member: str) -> str:
    """The file that holds the picture of one index row whose shard is `url`."""
    if offset or member.startswith(_PARQUET_CELL):
        return url
    folder = _folder(url)
    return _file_place(folder, name_of(member) if folder == url else member)


_reader = functools.lru_cache(maxsize=256)(Reader)  # eviction closes it when its last user lets go


def _read_file(place: str) -> bytes:
    if is_remote(place):
        return read_range(place, 0, size_of(place))
    with open(place, "rb", buffering=0) as file:
        return file.read()


@functools.lru_cache(maxsize=1024)
def _folder(url: str) -> str:
    """The folder that a table's paths are relative to; a folder stands for itself."""
    return url if not is_remote(url) and os.path.isdir(url) else posixpath.dirname(url)


def _file_place(folder: str, path: str) -> str:
    return path if is_remote(path) else posixpath.join(folder, path)


def _stem(url: str) -> str:
    return posixpath.basename(url).split(".", 1)[0]


def _looks_right(read: Callable[[], bytes], verify: str) -> bool:
    try:
        if verify == "decode":
            decode(read())
        elif verify == "header":
            with Image.open(io.BytesIO(read())) as picture:
                return picture.width > 0
    except (DecodeError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False  # counted as undecodable in the index
    return True


_PARQUET = threading.Lock()
"""A Parquet file is read by one thread at a time."""


@functools.lru_cache(maxsize=8)
def _open_parquet(url: str) -> tuple[pq.ParquetFile, np.ndarray]:
    """The file and the first row of each of its groups, the total last."""
    file = tables.open_parquet(url)
    sizes = [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
    return file, np.cumsum([0, *sizes])


@functools.lru_cache(maxsize=4)
def _row_group(url: str, group: int, column: str) -> pa.ChunkedArray:
    return _open_parquet(url)[0].read_row_group(group, columns=[column])[column]


def _read_cell(url: str, row: int, column: str) -> bytes:
    starts = _open_parquet(url)[1]
    if row >= starts[-1]:
        raise InputError(f"{url} has no row {row}: it has changed since it was indexed.")
    group = int(np.searchsorted(starts, row, "right")) - 1
    with _PARQUET:
        cells = _row_group(url, group, column)
    data, _ = tables.picture(cells[row - int(starts[group])].as_py())
    if data is None:
        raise InputError(f"{url}: row {row} of column {column!r} holds no picture.")
    return data
