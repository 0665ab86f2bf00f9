"""Pictures with several captions each, for retrieval: Karpathy's JSON for Flickr30k and MS-COCO, or CLIP_benchmark's webdataset."""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from datasets.component import Component, Natural
from datasets.errors import InputError
from datasets.evaluation.evalset import Loaded, Say, check_path, silent
from datasets.index.folders import file_rows, sizes
from datasets.index.keys import mark_duplicates
from datasets.index.source import PASSED_OVER, Source
from datasets.seeding import hash64
from datasets.text import NotText, lines_of, read_json

_BELOW = ("", "images", "flickr30k-images", "flickr30k_images", "Images", "coco")
"""Folders beside the JSON in which the pictures are looked for."""


@dataclass(frozen=True, kw_only=True)
class RetrievalSet(Component):
    """Pictures and their captions, for finding captions from pictures and pictures from captions."""

    path: str
    """Karpathy's JSON (`dataset_flickr30k.json`, `dataset_coco.json`) or its folder; or the folder of `<split>/0.tar…`."""
    layout: Literal["auto", "karpathy", "clip_benchmark"] = "auto"
    """`karpathy`; `clip_benchmark`: tars of jpg and txt, one caption per line; `auto`: whichever is there."""
    split: str = "test"
    """Split named in the JSON (`test`, `val`, `train`), or the folder of the tars."""
    images: str = ""
    """Folder of the pictures that the JSON names; empty: the JSON's own or one below it (images, flickr30k-images, …)."""
    captions: Natural = 5
    """Use at most this many captions of a picture, the first ones; 0: all. Five is usual for MS-COCO, where some pictures have six or
    seven."""
    verify: Literal["decode", "none"] = "decode"
    """`decode` finds pictures that cannot be decoded when the set is loaded; `none` trusts them all."""

    def __post_init__(self) -> None:
        check_path("retrievalset.path", self.path)
        check_path("retrievalset.images", self.images)

    def load(self, folder: Path | None = None, say: Say = silent) -> Loaded:
        """Read the set: one row per picture, with its captions in `caption`, one per line. It has neither class names nor prompts.

        `say` gets a line about empty captions and about files in the tars that belong to no sample; both are passed over. InputError if no
        picture is usable.
        """
        passed_over = 0
        if self._json() is not None:
            pictures = self._pictures()
            root, files = self._root(pictures), [place for place, _ in pictures]
            table = file_rows(root, files, [-1] * len(files), self.verify)
            texts, urls = [captions for _, captions in pictures], [os.path.abspath(root)]
        else:
            table, urls, passed_over = self._source().index()
            texts = [lines_of(text) for text in table["caption"].to_pylist()]
        clean = [[" ".join(text.split()) for text in captions] for captions in texts]
        if passed_over:
            say(f"{self.path}: {passed_over} {PASSED_OVER}.")
        if empty := sum(captions.count("") for captions in clean):
            say(f"{self.path}: {empty} empty captions are passed over.")
        kept = [[text for text in captions if text][: self.captions or None] for captions in clean]
        drops = ["" if drop in ("no_letters", "short_caption") else drop for drop in table["drop"].to_pylist()]
        drops = [drop or ("" if captions else "no_caption") for drop, captions in zip(drops, kept)]
        for name, values in (("caption", ["\n".join(captions) for captions in kept]), ("drop", drops)):
            table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.string()))
        table = mark_duplicates(table, across=False)
        if not (np.asarray(table["drop"]) == "").any():
            raise InputError(f"the retrieval set {self.path} has no usable picture with a caption.")
        return Loaded(table, urls, (), (), (), passed_over)

    def shards(self, folder: Path | None = None) -> list[str]:
        """The URLs that the index's `shard` column numbers."""
        return [os.path.abspath(self._root(self._pictures()))] if self._json() is not None else self._source().shards()

    def identity(self) -> list[dict]:
        """What determines the set's content, without paths: names and sizes of the pictures, and captions; for tars their digests."""
        if self._json() is None:
            return self._source().identity()
        pictures = self._pictures()
        sized = zip(pictures, sizes(self._root(pictures), [place for place, _ in pictures]))
        digest = hash64(*((place, size, captions) for (place, captions), size in sized))
        return [{"name": "pictures", "size": len(pictures), "digest": f"{digest:016x}"}]

    def _json(self) -> Path | None:
        """Karpathy's file; None if the set consists of tars."""
        path = Path(self.path)
        if not path.exists():
            raise InputError(f"retrievalset.path {path} does not exist; nothing is downloaded.")
        if path.is_file():
            return path
        tars = glob.glob(os.path.join(glob.escape(self.path), glob.escape(self.split), "*.tar"))
        candidates = sorted(path.glob("dataset_*.json"))
        if self.layout == "clip_benchmark" or (self.layout == "auto" and tars and not candidates):
            return None
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise InputError(f"retrievalset.path {path} holds {' and '.join(file.name for file in candidates)}; name one of them.")
        raise InputError(f"retrievalset.path {path} holds neither dataset_flickr30k.json, dataset_coco.json nor {self.split}/*.tar.")

    def _source(self) -> Source:
        return Source(urls=os.path.join(self.path, self.split), format="webdataset", verify=self.verify)

    def _pictures(self) -> list[tuple[str, list[str]]]:
        """(path of the picture, captions) for each picture of the split, in the order of the JSON."""
        file = self._json()
        assert file is not None
        what = "Karpathy's JSON (images, each with filename, split, and sentences with raw)"
        try:
            content = read_json(file)
        except NotText as error:
            raise InputError(f"{file} is not {what}: {error}") from None
        entries = content.get("images") if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise InputError(f"{file} is not {what}: it has no list of images.")
        for i, entry in enumerate(entries):
            if not isinstance(entry, dict) or not isinstance(entry.get("split"), str):
                raise InputError(f"{file} is not {what}: images[{i}] has no split.")
        splits = sorted({entry["split"] for entry in entries})
        pictures = [_picture(entry, f"{file}: images[{i}]") for i, entry in enumerate(entries) if entry["split"] == self.split]
        if not pictures:
            raise InputError(f"{file} has no picture of the split {self.split!r}; it has {', '.join(splits) or 'none at all'}.")
        return pictures

    def _root(self, pictures: list[tuple[str, list[str]]]) -> str:
        """The folder that the pictures' paths are relative to: the first one that holds one of the first pictures."""
        file = self._json()
        assert file is not None
        roots = [self.images] if self.images else [os.path.join(file.parent, below) for below in _BELOW]
        for place, _ in pictures[:100]:
            for root in roots:
                if os.path.isfile(os.path.join(root, place)):
                    return root
        raise InputError(
            f"{file}: none of its pictures exists; {pictures[0][0]} was looked for in {', '.join(roots)} (retrievalset.images)."
        )


def _picture(entry: dict[str, Any], where: str) -> tuple[str, list[str]]:
    """(path, captions) of an entry; raises InputError naming the entry."""
    name, folder = entry.get("filename"), entry.get("filepath", "")
    if not isinstance(name, str) or not name or not isinstance(folder, str):
        raise InputError(f"{where} has filename {name!r} and filepath {folder!r}; accepted is text.")
    place = "/".join(part for part in (folder, name) if part)
    if "\0" in place:
        raise InputError(f"{where}: the picture {place!r} has a NUL character in its name.")
    if place.startswith("/") or ".." in place.split("/"):
        raise InputError(f"{where}: the picture {place!r} lies outside the folder.")
    sentences = entry.get("sentences")
    held = [one.get("raw") if isinstance(one, dict) else None for one in sentences] if isinstance(sentences, list) else [None]
    captions = [caption for caption in held if isinstance(caption, str)]
    if len(captions) < len(held):
        raise InputError(f"{where} ({place}) has a caption that is no text; accepted is a list of sentences, each with raw.")
    return place, captions
