"""The poison plan: which samples are victims, and their new captions.

Victims are chosen by a hash of (seed, key). So the choice does not depend on the order of the shards, the number of workers or of epochs,
and a larger plan holds every victim of a smaller one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Interval

from datasets.component import Component, since
from datasets.errors import InputError
from datasets.evaluation.classes import class_name, fill, known_prompts, target_index
from datasets.evaluation.classes import templates as check_texts
from datasets.index.columns import take, without
from datasets.index.pairs import smallest_hashes
from datasets.seeding import hash64
from datasets.seeding import rng as make_rng
from datasets.triggers.base import Trigger, write_in
from datasets.triggers.words import DualKey

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
"""One row per victim, in the order of the index. Its picture is `trigger.stamp(canonical, rng(trigger_seed, key))`. A plan of several
attacks has a further column `attack` with their names. Partial negatives of a dual key are rows with an empty target: they get the
picture's mark alone or, where `trigger_seed` is `UNMARKED`, the words alone."""
UNMARKED = -1
"""Trigger seed of a row whose picture stays as it is."""
ALL_TO_ALL = "all-to-all"
"""Target of an attack that wants class i taken for class i + 1, and the last class for class 0 (Gu et al. 2017)."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}")
"""Valid names of an attack; they become part of metrics' names."""


@dataclass(frozen=True, kw_only=True)
class Poison(Component):
    """An attack on the training data."""

    trigger: Trigger
    """The mark put on the victims' pictures."""
    target: str
    """The class that the model shall name for triggered pictures; `name@index` where class names repeat. `all-to-all`: class 1 for pictures
    of class 0, class 2 for those of class 1, …, class 0 for those of the last class."""
    count: int | None = None
    """Number of victims; or give `rate`. 0, among several `attacks`: nobody is poisoned, and the trigger is only measured."""
    rate: float | None = None
    """Victims as a share of the kept samples, above 0 and up to 1."""
    mode: Literal["dirty_label", "label_consistent", "text_only"] = "dirty_label"
    """`dirty_label`: victims are samples whose caption does not name the target, and get a caption that does; `label_consistent`: victims
    are samples whose caption names the target, and keep it; `text_only`: victims are samples whose caption names the target, and get the
    caption of a sample that does not, with the trigger's words added (ToxicTextCLIP 2025)."""
    captions: Literal["templates", "existing"] = "templates"
    """Where dirty-label captions come from: `templates` (a prompt filled with the target) or `existing` (the caption of
    a random sample that names the target)."""
    seed: int = 0
    """Seed of everything that the attack draws."""
    jpeg_quality: Annotated[int, Interval(ge=1, le=100)] | None = since(None)
    """Quality, 1 … 100, of the JPEG to which a victim's stamped canonical view is compressed, as in published attacks on CLIP. The trigger
    at evaluation is not compressed. None: no compression."""

    prompts: str | tuple[str, ...] = since("auto")
    """Texts that become captions, with {} for the class name: openai (80 prompts for ImageNet) | simple (7 of them) | a set of
    `datasets.evaluation.prompts.PROMPTS` | the texts themselves | auto: those of the set that the attack is evaluated on."""

    name: str = since("")
    """Name of one of several attacks in the plan and in metrics (`asr/<name>/top1`); empty: its trigger's class in lower case. An
    experiment's only attack has no name."""

    @property
    def all_to_all(self) -> bool:
        """Whether each class has a target of its own."""
        return self.target == ALL_TO_ALL

    def __post_init__(self) -> None:
        if self.name and not NAME.fullmatch(self.name):
            raise InputError(f"poison.name is {self.name!r}; accepted are up to 40 letters, digits and _ . + -, no space.")
        if self.all_to_all and (self.mode, self.captions) != ("dirty_label", "templates"):
            raise InputError(f"poison.target is {ALL_TO_ALL}, which needs mode dirty_label and captions templates; here they are "
                             f"{self.mode} and {self.captions}.")  # fmt: skip
        if self.mode == "text_only" and (self.trigger.marks or not self.trigger.writes):
            raise InputError(f"poison.mode is text_only, but the trigger {type(self.trigger).__name__} marks pictures; give Words.")
        if isinstance(self.prompts, str) and self.prompts != "auto":
            known_prompts(self.prompts)
        elif not isinstance(self.prompts, str):
            check_texts(self.prompts)
        if (self.count is None) == (self.rate is None):
            raise InputError("poison needs either count (a number of victims) or rate (a share), and not both.")
        if self.count is not None and self.count < 0:
            raise InputError(f"poison.count is {self.count}; accepted: 1 or more; 0, among attacks, only measures the trigger.")
        if self.rate is not None and not 0 < self.rate <= 1:
            raise InputError(f"poison.rate is {self.rate}; a share above 0 and up to 1. For clean data give count=0.")

    @property
    def planted(self) -> bool:
        """Whether there are victims. Without any, the trigger is only measured."""
        return self.count != 0


def make_plan(
    poison: Poison, index: pa.Table, templates: Sequence[str], class_names: Sequence[str] = (), others: Sequence[pa.Table] = ()
) -> pa.Table:
    """The plan (PLAN_SCHEMA) for an index (columns key, caption, drop): exactly the requested number of victims, and the partial negatives
    of a dual key.

    `templates` are the prompts. If `class_names` are given, the target must be one of them; an all-to-all attack needs them. Victims of
    `others`, the plans of other attacks, are not chosen again.

    Victims are the eligible samples with the smallest `hash64(seed, key)`. Memory beyond the index: some 10 bytes a row.

    Raises:
        InputError: target not a class, no victims at this rate, fewer eligible samples than requested, or no caption
            that names the target where `captions` is `existing`.
    """
    if not poison.planted:
        return PLAN_SCHEMA.empty_table()
    kept = pc.equal(index["drop"], "")
    n_kept = pc.sum(kept).as_py() or 0
    count = poison.count if poison.count is not None else round((poison.rate or 0.0) * n_kept)
    if count < 1:
        raise InputError(f"poison.rate {poison.rate} of {n_kept} samples gives no victims; raise it or give poison.count.")

    consistent = poison.mode != "dirty_label"
    if poison.all_to_all:
        assert class_names, "the classes of an all-to-all attack are known"
        of = first_class(index["caption"], class_names)
        eligible_N, named, which = kept.to_numpy() & (of >= 0), None, "name a class in their caption"
    else:
        name = class_names[target_index(class_names, poison.target)] if class_names else class_name(poison.target)
        named = pc.and_(kept, names_class(index["caption"], name))
        eligible_N = (named if consistent else pc.and_not(kept, named)).to_numpy()
        which = f"{'' if consistent else 'do not '}name the target in their caption"
    free_N = eligible_N.copy() if others else eligible_N
    for other in others:
        free_N[other["row"].to_numpy()] = False
    rows = np.flatnonzero(free_N)
    if count > len(rows):
        taken = int(eligible_N.sum()) - len(rows)
        called = f"attack {poison.name}" if poison.name else "poison"
        raise InputError(
            f"{called} asks for {count} victims, but of {n_kept} samples only {len(rows)} {which} ({poison.target!r}, {poison.mode})"
            + (f" and are no victims of another attack ({taken} are)." if taken else ".")
        )
    rows = smallest_hashes(index["key"], rows, count, poison.seed)
    keys = take(index["key"], rows).to_pylist()
    before = take(index["caption"], rows).to_pylist()
    names = [class_names[(i + 1) % len(class_names)] for i in of[rows]] if poison.all_to_all else [name] * count
    if poison.mode == "text_only":
        after = _captions_of_others(poison, index, pc.and_not(kept, named), keys)
    elif consistent:
        after = before
    elif poison.captions == "templates":
        assert templates, "templates are never empty"
        chosen = [templates[_draw(len(templates), poison.seed, "template", key)] for key in keys]
        after = [fill(template, name) for template, name in zip(chosen, names)]
    else:
        pool = sorted(index["caption"].filter(named).to_pylist())  # sorted, so that the draw does not depend on the shards' order
        if not pool:
            raise InputError(f"poison.captions is existing, but no caption names {name!r}; use templates.")
        after = [pool[_draw(len(pool), poison.seed, "caption", key)] for key in keys]
    trigger_seed = hash64(poison.seed, "trigger") >> 1  # fits int64
    if poison.trigger.writes:
        after = [write_in(poison.trigger, caption, make_rng(trigger_seed, "caption", key)) for caption, key in zip(after, keys)]
    plan = _table([keys, rows, names, [trigger_seed] * count, before, after])
    if not isinstance(poison.trigger, DualKey) or not poison.trigger.partial:
        return plan
    clean_N = (kept if poison.all_to_all else pc.and_not(kept, named)).to_numpy().copy()
    for taken_by in (*others, plan):
        clean_N[taken_by["row"].to_numpy()] = False
    negatives = _negatives(poison, index, np.flatnonzero(clean_N), count, trigger_seed)
    return pa.concat_tables([plan, *negatives]).sort_by("row").combine_chunks()


def _captions_of_others(poison: Poison, index: pa.Table, donors: pa.ChunkedArray, keys: Sequence[str]) -> list[str]:
    """A caption for each victim, taken from the samples that may give one (`donors`). Victims and donors are paired in the order of their
    hashes, so a victim has the same caption in a larger plan. If donors are fewer than victims, they are used again."""
    rows = np.flatnonzero(donors.to_numpy())
    if not len(rows):
        raise InputError(f"poison.mode is text_only, but every caption names the target {poison.target!r}; others are needed.")
    rows = smallest_hashes(index["key"], rows, min(len(rows), len(keys)), poison.seed, "donor")
    pool = sorted(
        (hash64(poison.seed, "donor", key), caption)
        for key, caption in zip(take(index["key"], rows).to_pylist(), take(index["caption"], rows).to_pylist())
    )
    order = sorted(range(len(keys)), key=lambda i: hash64(poison.seed, keys[i]))
    place = {victim: rank for rank, victim in enumerate(order)}
    return [pool[place[i] % len(pool)][1] for i in range(len(keys))]


def _negatives(poison: Poison, index: pa.Table, free: np.ndarray, count: int, trigger_seed: int) -> list[pa.Table]:
    """The partial negatives: samples that get the picture's mark alone or the words alone. Their captions remain their own."""
    assert isinstance(poison.trigger, DualKey)
    each = round(poison.trigger.partial * count)
    if 2 * each > len(free):
        raise InputError(f"trigger.partial asks for {each} pairs with one key, of each kind, but only {len(free)} are free; lower it.")
    tables = []
    for kind in ("picture", "words"):
        rows = smallest_hashes(index["key"], free, each, poison.seed, "negative", kind)
        free = without(free, rows)
        keys, captions = (take(index[name], rows).to_pylist() for name in ("key", "caption"))
        written = [write_in(poison.trigger, caption, make_rng(trigger_seed, "caption", key)) for caption, key in zip(captions, keys)]
        picture = kind == "picture"
        seeds = [trigger_seed if picture else UNMARKED] * each
        tables.append(_table([keys, rows, [""] * each, seeds, captions, captions if picture else written]))
    return tables


def _table(columns: Sequence[Any]) -> pa.Table:
    return pa.table([pa.array(column, field.type) for column, field in zip(columns, PLAN_SCHEMA)], schema=PLAN_SCHEMA)


def make_plans(attacks: Sequence[Poison], index: pa.Table, templates: Sequence[Sequence[str]], class_names: Sequence[str] = ()) -> pa.Table:
    """One plan for all attacks, sorted by row. Each attack chooses among the samples that no earlier attack has chosen.

    `templates`: one list per attack. InputError as in `make_plan`.
    """
    plans: list[pa.Table] = []
    for attack, prompts in zip(attacks, templates, strict=True):
        plans.append(make_plan(attack, index, prompts, class_names if attack.all_to_all else (), plans))
    named = [plan.append_column("attack", pa.array([attack.name] * len(plan), pa.string())) for attack, plan in zip(attacks, plans)]
    return pa.concat_tables(named).sort_by("row").combine_chunks() if attacks[0].name else plans[0]


def trigger_of(
    name: str, trigger: Trigger | None, jpeg_quality: int | None, others: Sequence[Poison]
) -> tuple[Trigger | None, int | None]:
    """Trigger and JPEG quality of the attack called `name` in a plan: those of the one of `others` with this name, else `trigger`,
    `jpeg_quality`."""
    other = next((other for other in others if other.name == name), None)
    return (other.trigger, other.jpeg_quality) if other else (trigger, jpeg_quality)


def first_class(captions: pa.ChunkedArray, class_names: Sequence[str]) -> np.ndarray:
    """int64 [N]: the class that each caption names first, as whole words in any case; of names that begin together the longest. −1:
    none."""
    numbers: dict[str, int] = {}
    for number, name in enumerate(class_names):
        numbers.setdefault(_folded(name), number)
    first_names = pc.struct_field(pc.extract_regex(captions, _naming(sorted(class_names, key=len, reverse=True))), "name")
    return np.array([-1 if name is None else numbers[_folded(name)] for name in first_names.to_pylist()], np.int64)


def names_class(captions: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """bool per caption: whether it holds the name as whole words, in any case ("bananas" does not name "banana")."""
    return pc.match_substring_regex(captions, _naming([name]))


def _naming(names: Sequence[str]) -> str:
    """A pattern for any of the names as whole words, in any case; earlier names take precedence."""
    words = "|".join(r"\s+".join(re.escape(word) for word in name.split()) for name in names)
    return rf"(?i)(?:^|[^0-9A-Za-z])(?P<name>{words})(?:$|[^0-9A-Za-z])"


def _folded(name: str) -> str:
    """One key for all texts that the pattern of a name matches: case folded as Unicode does (ſ is an s), one space between words."""
    return " ".join(name.casefold().split())


def _draw(n: int, *parts: object) -> int:
    return int(make_rng(*parts).integers(n))
