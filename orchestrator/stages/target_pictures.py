"""The stage `targets`: the test pictures of a targeted poisoning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from datasets.component import needs_of
from datasets.errors import InputError
from datasets.evaluation.classes import target_index
from datasets.feed.loader import Recipe, make_batch
from datasets.images.view import Views
from datasets.index.pairs import smallest_hashes
from datasets.triggers.targeted import FILE, TargetPictures
from orchestrator.experiment.fingerprint import encode
from orchestrator.stages.base import Around, At, Stage
from orchestrator.stages.testset import TestSet
from orchestrator.store import write_json


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetsChosen(Stage):
    """The canonical views of the chosen pictures, and in `summary.json` their keys and labels."""

    kind = "targets"
    serves = (TargetPictures,)
    need: TargetPictures
    target: str
    size: int
    testset: TestSet

    @classmethod
    def serve(cls, need: TargetPictures, around: Around) -> TargetsChosen:
        """The pictures of the experiment's test set. InputError for an all-to-all attack, which has no one target."""
        attack = next(one for one in around.experiment.poisons if need in needs_of(one))
        testset = around.made["testset"]
        assert isinstance(testset, TestSet)
        if attack.all_to_all or attack.mode != "dirty_label":
            raise InputError(
                f"poison.target is {attack.target} and poison.mode {attack.mode}; a targeted attack needs one class and dirty_label."
            )
        return cls(need=need, target=attack.target, size=around.experiment.views.size, testset=testset)

    @property
    def name(self) -> str:
        return f"{self.need.pictures} not {self.target}"

    @property
    def config(self) -> Any:
        return {"chosen": encode(self.need), "target": self.target, "size": self.size}

    @property
    def inputs(self) -> dict[str, Stage]:
        return {"testset": self.testset}

    def make(self, at: At) -> None:
        made = self.testset.read(at)
        pairs = made.pairs()
        keys, label_N = pairs.keys(), pairs.labels()
        eligible = np.flatnonzero(label_N != target_index(made.class_names, self.target, made.numbers))
        if len(eligible) < self.need.pictures:
            raise InputError(f"trigger.chosen.pictures is {self.need.pictures}; the test set has {len(eligible)} of other classes.")
        places = smallest_hashes(pa.chunked_array([keys]), eligible, self.need.pictures, self.need.seed, "targets")
        np.save(at.folder / FILE, make_batch(pairs.records(places), 0, Recipe(views=Views(size=self.size)))["image"])
        chosen = {"keys": [keys[int(place)].as_py() for place in places], "labels": label_N[places].tolist()}
        write_json(at.folder / "summary.json", chosen)
