"""Where samples come from: webdataset tars, Parquet, CSV/TSV of paths; each shard becomes rows of one index.

An index row says where a picture's bytes lie (`datasets.index.addresses`), so pictures are read by offset, and their order is only a matter
of row numbers.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from datasets.captions import NO_CAPTION, NOT_TEXT, Caption, as_caption, chosen
from datasets.component import Component
from datasets.errors import InputError, said
from datasets.images.view import DecodeError, check_decodes, check_size, pillow_errors
from datasets.index import parquet, tables
from datasets.index.addresses import PARQUET_CELL, file_place, folder_of, member_of, read_file
from datasets.index.keys import mark_duplicates, shard_names, shard_stem
from datasets.index.tar import TEXT_EXTENSIONS, Sample, samples
from datasets.storage import Reader, expand, is_remote, size_of
from datasets.text import NotText, decode_text

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
NOTES = b"notes"
"""Key in the metadata of a shard's table: JSON with `columns` {image, caption} and three counts. `passed_over`: members of a tar that
belong to no sample; `label_not_number`: samples of a tar that get no label because theirs is no class number; `json_broken`: samples whose
json member was to give caption or label but is no JSON object."""
PASSED_OVER = "files in the tars are no sample's and are passed over (second pictures, notes, links)"


@dataclass(frozen=True, kw_only=True)
class Source(Component):
    """Pairs of pictures and captions on disk or in a bucket."""

    urls: str | tuple[str, ...]
    """Paths or URIs of shards: brace ranges (`{0000..0575}`), globs and folders are expanded."""
    format: Literal["auto", "webdataset", "parquet", "csv"] = "auto"
    """`webdataset`, `parquet`, `csv`, or `auto`: by the file's extension."""
    image_key: str = "auto"
    """Column with the picture (Parquet: bytes, {bytes, path} or a path; CSV: a path); `auto`: the first of `tables.IMAGE_NAMES` that is
    there. Tars go by file extension."""
    caption_key: str = "auto"
    """Column with the caption; `auto`: the first of `tables.CAPTION_NAMES`. In tars the field of the json member that is read if there is
    no txt member; there `auto` means `caption`."""
    label_key: str = "label"
    """Column or json field with the class number, if there is one; in tars a `cls` member takes precedence."""
    delimiter: str = "auto"
    """Delimiter of CSV files; `auto`: a tab for .tsv and .tab, else tabs or commas, whichever the header line has more of."""
    captions: Literal["one", "first", "random", "each"] = "one"
    """What to do with a Parquet column of lists of captions: take the `first`, one drawn by the picture's key (`random`), or `each`, every
    one in a pair of its own with the picture; `one` refuses lists."""
    key_prefix: bool = False
    """Put `<shard's name>/` before each key, for sets merged from several downloads that number from zero (see `shard_names`)."""
    min_caption_length: int = 0
    """Shorter captions (in characters) are dropped."""
    verify: Literal["decode", "header", "none"] = "decode"
    """How pictures are checked when they are indexed: `decode`, `header` (format and size only) or `none`."""

    def shards(self) -> list[str]:
        """The shards' absolute paths or URIs in the order of `urls`. Raises `InputError` for a file that does not exist."""
        patterns = (self.urls,) if isinstance(self.urls, str) else tuple(self.urls)
        kinds = tuple(EXTENSIONS.values()) if self.format == "auto" else (EXTENSIONS[self.format],)
        urls = [url for pattern in patterns for url in expand(pattern, kinds)]
        if not urls:
            raise InputError("source.urls names no shard; give at least one path, folder, glob or brace range.")
        if len(set(urls)) < len(urls):
            twice = next(url for url in urls if urls.count(url) > 1)
            raise InputError(f"source.urls names {twice} twice; each shard is read once.")
        return urls

    def identity(self) -> list[dict]:
        """For each shard its name, size and a digest of its first and last 64 KiB (of all of it for CSV); no path and no time.

        If shards in several folders have the same name, and keys contain it, also the part of the path that tells them apart.
        """
        urls = self.shards()
        with ThreadPoolExecutor(8) as pool:
            identities = list(pool.map(self._shard_identity, urls))
        for url, name, identity in zip(urls, shard_names(urls), identities):
            if name != shard_stem(url) and (self.key_prefix or self._format_of(url) == "parquet"):
                identity["prefix"] = name
        return identities

    def _shard_identity(self, url: str) -> dict:
        digest, edge = hashlib.blake2b(digest_size=16), 64 << 10
        with Reader(url) as reader:
            whole = self._format_of(url) == "csv"
            for start in range(0, reader.size, edge) if whole else (0, max(0, reader.size - edge)):
                digest.update(reader.read(start, edge))
            return {"name": posixpath.basename(url), "size": reader.size, "digest": digest.hexdigest()}

    def index_shard(self, number: int, url: str, name: str | None = None) -> pa.Table:
        """The rows of shard `number` (its place in `shards()`), `INDEX_SCHEMA`; unusable samples carry a drop reason.

        A row that is dropped only for its caption still has everything else, its label included. `name` is the shard's name in
        `shard_names`, looked up if it is not given. The table's metadata hold `NOTES`. A shard without samples gives no rows. Raises
        `InputError` naming the shard if it is missing, cut short or no tar, lacks a column, or is empty and the only one.
        """
        kind = self._format_of(url)
        if name is None:
            name = self._name_of(url) if self.key_prefix or kind == "parquet" else shard_stem(url)
        rows = _Rows(self, number, url, name)
        {"webdataset": self._index_tar, "parquet": self._index_parquet, "csv": self._index_csv}[kind](url, rows)
        if not rows.keys and self.shards() == [url]:
            others = f" (passed over: {', '.join(map(repr, rows.passed_over[:5]))})" if rows.passed_over else ""
            raise InputError(f"{url} holds no samples{others}.")
        if rows.first_missing and all(drop == "no_image" for drop in rows.drops):
            tried = rows.first_missing
            raise InputError(f"{url}: none of its {len(rows.keys)} pictures exists; the first was looked for at {tried}.")
        return rows.table()

    def index(self) -> tuple[pa.Table, list[str], int]:
        """(the rows of all shards after `mark_duplicates`, the shards, how many members of tars are `PASSED_OVER`)."""
        urls = self.shards()
        tables = [self.index_shard(number, url) for number, url in enumerate(urls)]
        passed_over = sum(json.loads(table.schema.metadata[NOTES])["passed_over"] for table in tables)
        return mark_duplicates(pa.concat_tables(tables), urls), urls, passed_over

    def lines(self, url: str) -> Iterator[int | None]:
        """For each row of the shard's table: the line where it begins (CSV) or the number of the row (Parquet), from 1; None in tars."""
        kind = self._format_of(url)
        if kind == "csv":
            return (row.line for row in tables.csv_rows(url, self.delimiter, self._keys()))
        if kind == "parquet":
            rows = parquet.parquet_rows(url, self._keys(), self.captions, pictures=False)
            return (row.line for row in rows for _ in chosen(row.captions, self.captions, ""))
        return itertools.repeat(None)

    @property
    def json_field(self) -> str:
        """The field of a tar's json members that may hold the caption."""
        return "caption" if self.caption_key == "auto" else self.caption_key

    def _keys(self) -> tables.Keys:
        return tables.Keys(self.image_key, self.caption_key, self.label_key)

    def _name_of(self, url: str) -> str:
        urls = self.shards()
        return shard_names(urls)[urls.index(url)] if url in urls else shard_stem(url)

    def _format_of(self, url: str) -> str:
        if self.format != "auto":
            return self.format
        for name, extensions in EXTENSIONS.items():
            if url.lower().endswith(extensions):
                return name
        accepted = ", ".join(ext for extensions in EXTENSIONS.values() for ext in extensions)
        if url.lower().endswith((".gz", ".tgz", ".zst", ".bz2", ".xz", ".zip")):
            raise InputError(f"{url} is compressed, so nothing in it can be read by offset; decompress it first ({accepted} are read).")
        if url.lower().endswith((".json", ".jsonl")):
            raise InputError(f"{url} is JSON, which is no source ({accepted} are); write a table with the columns image and caption of it.")
        raise InputError(f"{url}: the extension tells no format ({accepted}); set source.format to say which it is.")

    def _index_tar(self, url: str, rows: _Rows) -> None:
        seen: dict[str, Sample] = {}
        json_field, label_key = self.json_field, self.label_key
        with Reader(url) as reader:
            for sample in samples(reader, rows.passed_over):
                image = sample.image()
                caption, label, broken = tar_texts(reader, sample, json_field, label_key)
                rows.json_broken += broken
                if label is None:
                    rows.label_not_number, label = rows.label_not_number + 1, -1
                first = seen.setdefault(sample.key, sample)  # whether it can be used or not
                if first is not sample and not (first.image() and image):
                    raise InputError(
                        f"{url}: the files of {sample.key!r} are not side by side (byte "
                        f"{min(m.header for m in first.members.values())} and byte "
                        f"{min(m.header for m in sample.members.values())}); write each sample's files together."
                    )
                if image is None:
                    unknown = next((member for kind, member in sample.members.items() if kind not in TEXT_EXTENSIONS), None)
                    place = _Place(member_of(unknown.name), unknown.offset, unknown.size, None) if unknown else _NOWHERE
                    rows.add(sample.key, place, [caption], label, "unknown_extension" if unknown else "no_image")
                else:
                    read = functools.partial(reader.read, image.offset, image.size)
                    place = _Place(member_of(image.name), image.offset, image.size, read)
                    rows.add(sample.key, place, [caption], label)

    def _index_parquet(self, url: str, rows: _Rows) -> None:
        for row in parquet.parquet_rows(url, self._keys(), self.captions, found=rows.found):
            key = row.key if row.key is not None else f"{rows.name}-{row.line - 1:08d}"
            data = row.data
            if data is None:
                place = self._file(url, rows, row.path)
            else:
                place = _Place(PARQUET_CELL + rows.columns["image"], row.line - 1, len(data), functools.partial(bytes, data))
            rows.add(key, place, chosen(row.captions, self.captions, key), row.label)

    def _index_csv(self, url: str, rows: _Rows) -> None:
        seen: dict[str, list[str | None]] = {}
        for row in tables.csv_rows(url, self.delimiter, self._keys(), rows.found):
            path, caption = row.path or "", row.captions[0]
            key = posixpath.normpath(path) if path and "://" not in path else path
            captions = seen.setdefault(key, [])
            duplicate = caption.text in captions
            if not duplicate:  # a picture with several captions, as in Flickr30k and COCO, is several samples
                captions.append(caption.text)
                key = f"{key}#{len(captions)}" if len(captions) > 1 else key
            rows.add(key, self._file(url, rows, path), [caption], row.label, "duplicate_key" if duplicate else "")

    def _file(self, url: str, rows: _Rows, path: str | None) -> _Place:
        """A picture that is a separate file."""
        place = file_place(folder_of(url), path) if path else ""
        if place.startswith(("http://", "https://")):
            raise InputError(f"{url}: {path} is a web address; `cleansweep fetch {url} FOLDER` makes shards of such a list.")
        try:
            length = size_of(place) if place and (is_remote(place) or not os.path.isdir(place)) else -1
        except InputError as error:
            raise InputError(f"{url}: the picture {(path or '')[:200]!r}: {error}") from None
        if length < 0:
            rows.first_missing = rows.first_missing or place or "(an empty path)"
            return _Place(member_of(path or ""), 0, 0, None)
        return _Place(member_of(path or ""), 0, length, lambda: read_file(place))


class _Place(NamedTuple):
    """Where a picture lies, and how to read its bytes; None if there is no picture."""

    member: str
    offset: int
    length: int
    read: Callable[[], bytes] | None


_NOWHERE = _Place("", 0, 0, None)


class _Rows:
    """Columns of an index table while they grow, with the checks that all formats share."""

    def __init__(self, source: Source, number: int, url: str, name: str) -> None:
        self.source, self.number, self.url, self.name = source, number, url, name
        self.keys: list[str] = []
        self.drops: list[str] = []
        self.first_missing = ""
        self.passed_over: list[str] = []
        self.label_not_number = self.json_broken = 0
        self.columns: dict[str, str] = {}
        self._used: set[str] = set()
        self._rest: list[tuple[str, int, int, str, int]] = []

    def found(self, keys: tables.Keys) -> None:
        """Note the columns that are read."""
        self.columns = {"image": keys.image, "caption": keys.caption}

    def add(self, key: str, place: _Place, captions: Sequence[Caption], label: int, drop: str = "") -> None:
        """Append a row for each caption, with the keys `key`, `key#2`, …

        A key that an earlier usable sample has makes this one a duplicate; an earlier one that is dropped itself takes no key away.
        """
        if not drop and key in self._used:
            drop = "duplicate_key"
        if not drop and place.read is None:
            drop = "no_image"
        if not drop and place.read is not None and self.source.verify != "none":
            drop = fault(place.read, self.source.verify, f"{self.url}: the picture {place.member[:200]!r}")
        for n, caption in enumerate(captions, 1):
            one = f"{key}#{n}" if n > 1 else key
            self.keys.append(f"{self.name}/{one}" if self.source.key_prefix else one)
            self.drops.append(drop or caption.drop_reason(self.source.min_caption_length))
            self._rest.append((place.member, place.offset, place.length, caption.text or "", label))
            if not self.drops[-1]:
                self._used.add(key)

    def table(self) -> pa.Table:
        members, offsets, lengths, captions, labels = zip(*self._rest) if self._rest else ((),) * 5
        shard = np.full(len(self.keys), self.number, np.int32)
        columns = [self.keys, shard, members, offsets, lengths, captions, labels, self.drops]
        table = pa.table([pa.array(c, f.type) for c, f in zip(columns, INDEX_SCHEMA)], schema=INDEX_SCHEMA)
        counts = {"label_not_number": self.label_not_number, "json_broken": self.json_broken}
        notes = {"columns": self.columns, "passed_over": len(self.passed_over), **counts}
        return table.replace_schema_metadata({NOTES: json.dumps(notes)})


class Texts(NamedTuple):
    """The caption and label beside a picture in a tar."""

    caption: Caption
    """From the txt member, else from the json field."""
    label: int | None
    """From the cls member, else from the json field; -1 if there is none, None if it is no class number."""
    broken: bool = False
    """Whether caption or label had to come from a json member, and that is no JSON object."""


def tar_texts(reader: Reader, sample: Sample, caption_key: str, label_key: str) -> Texts:
    """Caption and label of a sample."""
    label: int | None = -1
    caption = NO_CAPTION
    if (txt := sample.members.get("txt")) is not None:
        caption = as_caption(reader.read_near(txt.offset, txt.size))
    if (cls := sample.members.get("cls")) is not None:
        label_text = as_caption(reader.read_near(cls.offset, cls.size))
        label = None if label_text.fault else tables.label(label_text.text)
    label_wanted = label_key and label in (None, -1)
    if (member := sample.members.get("json")) is not None and (caption is NO_CAPTION or label_wanted):
        try:
            fields = tables.json_object(decode_text(reader.read_near(member.offset, member.size), member.name))
        except NotText:
            return Texts(NOT_TEXT if caption is NO_CAPTION else caption, label, broken=True)
        if fields is None:
            return Texts(caption, label, broken=True)
        if caption is NO_CAPTION:
            caption = as_caption(fields.get(caption_key))
        if label_wanted and fields.get(label_key) is not None:
            label = tables.label(fields[label_key])
    return Texts(caption, label)


def fault(read: Callable[[], bytes], verify: str, where: str) -> str:
    """Why the picture cannot be used, as far as `verify` checks, or "". Raises `InputError` naming `where` if its bytes cannot be read."""
    try:
        if verify == "decode":
            check_decodes(read())
        elif verify == "header":
            data = read()
            with pillow_errors(), Image.open(io.BytesIO(data)) as picture:
                check_size(*picture.size, picture.mode)
                return "" if picture.width > 0 else DecodeError.reason
    except DecodeError as error:
        return error.reason  # counted in the index
    except (OSError, MemoryError) as error:  # not the picture's fault, so it must not be dropped
        raise InputError(f"{where} cannot be read: {said(error)}.") from error
    return ""
