"""The poison plan: which samples are victims, and what becomes of their captions.

A victim is a function of (seed, sample key) and of how many are asked for: the same whatever the order of the shards, the
number of workers or of epochs, and a larger plan holds every victim of a smaller one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.component import Component, since
from datasets.errors import InputError
from datasets.evaluation.classes import class_name, fill, known_prompts, target_index
from datasets.evaluation.classes import templates as check_texts
from datasets.index.pairs import smallest_hashes
from datasets.seeding import hash64
from datasets.seeding import rng as make_rng
from datasets.triggers.base import Trigger

PLAN_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("row", pa.int64()),
        ("target", pa.string()),
        ("trigger_seed", pa.int64()),
        ("caption_before", pa.string()),
        ("caption_after", pa.string()),
    ]
)
"""One row a victim, in the order of the index. Its pixels are `trigger.stamp(canonical, rng(trigger_seed, key))`."""


@dataclass(frozen=True, kw_only=True)
class Poison(Component):
    """An attack on the training data."""

    trigger: Trigger
    """The mark put on the victims' pictures."""
    target: str
    """Class that triggered pictures shall be taken for; `name@index` where class names repeat."""
    count: int | None = None
    """Number of victims; or give `rate`."""
    rate: float | None = None
    """Victims as a share of the kept samples, above 0 and up to 1."""
    mode: str = "dirty_label"
    """`dirty_label`: victims are samples whose caption does not name the target, and get a caption that does;
    `label_consistent`: victims are samples whose caption names the target, and keep it."""
    captions: str = "templates"
    """Where dirty-label captions come from: `templates` (a prompt filled with the target) or `existing` (the caption of
    a random sample that names the target)."""
    seed: int = 0
    """Seed of everything drawn here."""
    jpeg_quality: int | None = since(None)
    """Quality, 1 … 100, of the JPEG that a victim's stamped canonical view is written as and read from, as published attacks on
    CLIP made theirs; the trigger at evaluation is not compressed. None: victims are stamped without loss."""

    prompts: str | tuple[str, ...] = since("auto")
    """Texts that become captions, with {} where the class name goes: openai (80 prompts for ImageNet) | simple (7 of them) | a set of
    `datasets.evaluation.prompts.PROMPTS` | the texts themselves | auto: those of the set that the attack is judged on."""

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str) and self.prompts != "auto":
            known_prompts(self.prompts)
        elif not isinstance(self.prompts, str):
            check_texts(self.prompts)
        if (self.count is None) == (self.rate is None):
            raise InputError("poison needs either count (a number of victims) or rate (a share), and not both.")
        if self.count is not None and self.count < 1:
            raise InputError(f"poison.count is {self.count}; at least 1. For clean data leave the poison out.")
        if self.rate is not None and not 0 < self.rate <= 1:
            raise InputError(f"poison.rate is {self.rate}; a share above 0 and up to 1. For clean data leave the poison out.")
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise InputError(f"poison.jpeg_quality is {self.jpeg_quality}; accepted are 1 … 100, or none for no compression.")
        if self.mode not in ("dirty_label", "label_consistent"):
            raise InputError(f"poison.mode is {self.mode!r}; accepted are dirty_label and label_consistent.")
        if self.captions not in ("templates", "existing"):
            raise InputError(f"poison.captions is {self.captions!r}; accepted are templates and existing.")


def make_plan(poison: Poison, index: pa.Table, templates: Sequence[str], class_names: Sequence[str] = ()) -> pa.Table:
    """The plan (PLAN_SCHEMA) for an index (columns key, caption, drop): exactly as many victims as asked for.

    `templates` are the prompts; where `class_names` are given, the target must be one of them.

    Victims are the eligible samples with the smallest `hash64(seed, key)`. Memory beyond the index: some 10 bytes a row.

    Raises:
        InputError: target not a class, no victims at this rate, fewer eligible samples than asked for, or no caption
            that names the target where `captions` is `existing`.
    """
    name = class_names[target_index(class_names, poison.target)] if class_names else class_name(poison.target)
    kept = pc.equal(index["drop"], "")
    named = pc.and_(kept, names_class(index["caption"], name))
    n_kept = pc.sum(kept).as_py() or 0
    count = poison.count if poison.count is not None else round((poison.rate or 0.0) * n_kept)
    if count < 1:
        raise InputError(f"poison.rate {poison.rate} of {n_kept} samples gives no victims; raise it or give poison.count.")

    consistent = poison.mode == "label_consistent"
    eligible = named if consistent else pc.and_not(kept, named)
    rows = np.flatnonzero(eligible.to_numpy())
    if count > len(rows):
        which = "name the target in their caption" if consistent else "do not name the target in their caption"
        raise InputError(
            f"poison asks for {count} victims, but of {n_kept} samples only {len(rows)} {which} ({name!r}, {poison.mode})."
        )
    rows = smallest_hashes(index["key"], rows, count, poison.seed)
    keys = index["key"].take(rows).to_pylist()
    before = index["caption"].take(rows).to_pylist()
    if consistent:
        after = before
    elif poison.captions == "templates":
        filled = [fill(template, name) for template in templates]
        assert filled, "templates are never empty"
        after = [filled[_draw(len(filled), poison.seed, "template", key)] for key in keys]
    else:
        pool = sorted(index["caption"].filter(named).to_pylist())  # sorted: the draw must not depend on the shards' order
        if not pool:
            raise InputError(f"poison.captions is existing, but no caption names {name!r}; use templates.")
        after = [pool[_draw(len(pool), poison.seed, "caption", key)] for key in keys]
    trigger_seed = hash64(poison.seed, "trigger") >> 1  # fits int64
    columns = [keys, rows, [name] * count, [trigger_seed] * count, before, after]
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, PLAN_SCHEMA)], schema=PLAN_SCHEMA)


def names_class(captions: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """bool per caption: does it hold the name as whole words, in any case? ("bananas" does not name "banana")"""
    words = r"\s+".join(re.escape(word) for word in name.split())
    return pc.match_substring_regex(captions, rf"(?i)(?:^|[^0-9A-Za-z]){words}(?:$|[^0-9A-Za-z])")


def _draw(n: int, *parts: object) -> int:
    return int(make_rng(*parts).integers(n))
