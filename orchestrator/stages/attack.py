"""The stage `poison`: which pairs are victims, and what becomes of them. Nothing is written over; feeds lay the plan over the pairs."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from datasets.attack.poison import Poison, make_plan
from datasets.errors import InputError
from datasets.evaluation.classes import class_name, templates
from datasets.evaluation.evalset import EvalSet
from datasets.feed.loader import Recipe, make_batch
from datasets.images.view import Views, as_jpeg, decode, visibility
from datasets.index.pairs import smallest_hashes
from datasets.seeding import rng
from datasets.synthetic import World
from datasets.triggers.base import put_on
from orchestrator.experiment.fingerprint import encode
from orchestrator.experiment.spec import Data
from orchestrator.stages.base import At, Stage
from orchestrator.stages.index import Index, read_index
from orchestrator.store import part, write_json
from orchestrator.training.inputs import Inputs

SHEET = 8
"""Victims on the sample sheet."""
VISIBILITY_PICTURES = 128
"""Victims through whose views the trigger's visibility is measured."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackPlan(Stage):
    """The poison plan of an attack on the pairs of an index, or on a subset of them."""

    kind = "poison"
    poison: Poison
    views: Views
    data: Data
    """Of it the subset and its seed are part of the identity."""
    index: Index
    tests: EvalSet | World
    """The set that the attack is judged on; of it the prompts are part of the identity, where the poison has none of its own."""

    @property
    def name(self) -> str:
        return self.poison.target

    @cached_property
    def config(self) -> Any:
        return {
            "poison": encode(self.poison, "poison"),
            "views": encode(self.views, "views"),
            "prompts": self.prompts,
            "subset": [self.data.subset, self.data.seed],
        }

    @property
    def prompts(self) -> str | list[str]:
        """The name of the captions' prompts, or the texts."""
        if self.poison.prompts != "auto":
            return self.poison.prompts if isinstance(self.poison.prompts, str) else list(self.poison.prompts)
        found = self.tests.templates if isinstance(self.tests, World) else self.tests.prompts()
        return found if isinstance(found, str) else list(found)

    @property
    def inputs(self) -> dict[str, Stage]:
        return {"index": self.index}

    @property
    def components(self) -> Any:
        return self.poison

    def read(self, at: At) -> Inputs:
        """The pairs with the plan laid over them."""
        if self.fingerprint in at.known:
            return at.known[self.fingerprint]
        found = at.of(self)
        part(found, "summary.json")  # of which the gate's facts are part
        rows = str(found.folder / "rows.npy") if "rows.npy" in found.manifest["files"] else None
        return replace(self.unpoisoned(at), plan=str(found.folder / "plan.parquet"), rows=rows)

    def unpoisoned(self, at: At) -> Inputs:
        """The pairs without the plan and its subset."""
        index = str(at.of(self.index).folder / "index.arrow")
        return Inputs(index=index, urls=tuple(self.index.read(at).shards()), plan="", rows=None)

    def make(self, at: At) -> None:
        inputs, folder = self.unpoisoned(at), at.folder
        index = read_index(inputs.index)
        if self.data.subset is not None:
            kept = inputs.pairs().rows
            if self.data.subset > len(kept):
                raise InputError(f"data.subset is {self.data.subset}, but only {len(kept)} samples are kept.")
            rows = smallest_hashes(index["key"], kept, self.data.subset, self.data.seed, "subset")
            np.save(folder / "rows.npy", rows)
            outside = np.ones(len(index), dtype=bool)
            outside[rows] = False
            drop = pc.if_else(pa.array(outside), "not in the subset", index["drop"])
            index = index.set_column(index.schema.get_field_index("drop"), "drop", drop)
        plan = make_plan(self.poison, index, templates(self.prompts))
        pq.write_table(plan, folder / "plan.parquet")

        target = class_name(self.poison.target).lower()
        captions = plan["caption_after"].to_pylist()
        sheet = _victims(self, inputs, plan)
        pictures, keys = [picture for _, picture in sheet], [key for key, _ in sheet]
        summary = {
            "pairs": pc.sum(pc.equal(index["drop"], "")).as_py(),
            "victims": len(plan),
            "target": self.poison.target,
            "captions_with_target": sum(target in caption.lower() for caption in captions),
            "visibility": visibility(self.poison.trigger, pictures, keys, self.views, self.poison.seed),
        }
        write_json(folder / "summary.json", summary)
        _sample_sheet(self, sheet[:SHEET], plan, folder)


def _victims(attack: AttackPlan, inputs: Inputs, plan: pa.Table) -> list[tuple[str, np.ndarray]]:
    """(key, canonical view uint8 [S, S, 3]) of the first victims, not yet stamped."""
    pairs = inputs.pairs()
    rows = plan["row"].to_numpy()[:VISIBILITY_PICTURES]
    records = pairs.records(np.searchsorted(pairs.rows, rows))
    batch = make_batch(records, 0, Recipe(views=replace(attack.views, crop=None, flip=False)))
    return list(zip(batch["key"], batch["image"]))


def _sample_sheet(
    attack: AttackPlan, sheet: list[tuple[str, np.ndarray]], plan: pa.Table, folder: Path
) -> None:
    """Clean and triggered canonical views of a few victims with their captions, for the report."""
    (folder / "samples").mkdir(exist_ok=True)
    entries = []
    for i, ((key, picture), row) in enumerate(zip(sheet, plan.slice(0, SHEET).to_pylist())):
        stamped = put_on(attack.poison.trigger, picture, rng(row["trigger_seed"], key))
        if attack.poison.jpeg_quality is not None:
            stamped = decode(as_jpeg(stamped, attack.poison.jpeg_quality))
        for kind, pixels in (("clean", picture), ("triggered", stamped)):
            (folder / "samples" / f"{i}-{kind}.png").write_bytes(_png(pixels))
        entries.append({"key": key, **{name: row[name] for name in ("caption_before", "caption_after")}})
    write_json(folder / "samples.json", entries)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
