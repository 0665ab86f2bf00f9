"""The stage `patch`: BadCLIP's patch, optimised on a reference model before the pairs are poisoned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.attack.poison import names_class
from datasets.component import needs_of
from datasets.errors import InputError, its_type
from datasets.evaluation.classes import class_name
from datasets.feed.loader import Recipe, make_batch
from datasets.images.view import Views
from datasets.index.columns import take
from datasets.index.pairs import Pairs, smallest_hashes
from datasets.storage import sha256
from datasets.triggers.optimised import FILE, OptimisedPatch
from datasets.triggers.patch import Patch
from orchestrator.experiment.check import unpoisoned
from orchestrator.experiment.fingerprint import encode
from orchestrator.experiment.identity import file_identity, weights_identity
from orchestrator.experiment.spec import Experiment, Given, Pretrain
from orchestrator.stages.attack import AttackPlan, subset_rows
from orchestrator.stages.base import Around, At, Stage
from orchestrator.stages.index import Index, read_index
from orchestrator.stages.testset import TestSet
from orchestrator.stages.trained import Unpoisoned, last_checkpoint
from orchestrator.store import write_json
from orchestrator.training.inputs import Inputs
from orchestrator.training.job import load_model
from trainers.distributed import World
from trainers.model import Model

if TYPE_CHECKING:
    from trainers.encoder import Encoder

MOST_TARGETS = 10_000
"""Pictures and captions of the target that are used, at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchMade(Stage):
    """`patch.npy` and, in `summary.json`, its sha256 and the mean loss of each epoch. After a kill it is made anew."""

    kind = "patch"
    apart = True
    serves = (OptimisedPatch,)
    need: OptimisedPatch
    experiment: Experiment
    index: Index
    reference: Unpoisoned | None
    """The training of the reference model; None: a model with given weights."""

    @classmethod
    def serve(cls, need: OptimisedPatch, around: Around) -> PatchMade:
        """The patch of the experiment's pairs. InputError for a reference of another kind or size."""
        own, reference = around.experiment, need.reference
        index, testset = around.made["index"], around.made["testset"]
        assert isinstance(index, Index) and isinstance(testset, TestSet)
        if not isinstance(reference, (Pretrain, Given, Model)) or (isinstance(reference, Model) and not reference.pretrained):
            raise InputError(
                f"trigger.patch.reference is {its_type(reference)}; accepted: a Pretrain, a Given, or a Model with pretrained."
            )
        if strange := [one.target for one in own.poisons if need in needs_of(one) and one.target != need.target]:
            raise InputError(f"trigger.patch.target is {need.target!r}, but the attack's target is {strange[0]!r}; give both the same.")
        model = reference if isinstance(reference, Model) else reference.model
        if model.image_size != own.views.size:
            sizes = f"{model.image_size} pixels, the attacked model of {own.views.size}"
            raise InputError(f"trigger.patch.reference takes pictures of {sizes}; both must be of one size.")
        trained = None
        if isinstance(reference, Pretrain):
            plain = _without_needs(own)
            attack = AttackPlan(
                attacks=plain.poisons, views=plain.views, data=plain.data, index=index, tests=plain.evaluate.data, testset=testset
            )
            trained = Unpoisoned(experiment=unpoisoned(plain, reference), attack=attack, testset=testset, prior=None)
            around.served.setdefault(reference, trained)
        return cls(need=need, experiment=own, index=index, reference=trained)

    @property
    def name(self) -> str:
        return self.need.target

    @cached_property
    def config(self) -> Any:
        fields = {name: value for name, value in encode(self.need, "trigger.patch").items() if name != "reference"}
        data = self.experiment.data
        return {"patch": fields, "size": self.experiment.views.size, "subset": [data.subset, data.seed], "reference": self._weights()}

    def _weights(self) -> Any:
        """What the reference model is known by, where it is not trained."""
        own = self.need.reference
        if isinstance(own, Given):
            return {"given": file_identity(Path(own.checkpoint)), "model": encode(own.model, "trigger.patch.reference")}
        if isinstance(own, Model):
            weights = weights_identity(own)
            return {"model": encode(replace(own, pretrained=None) if weights else own), "weights": weights}
        return None

    @property
    def inputs(self) -> dict[str, Stage]:
        return {"index": self.index, **({} if self.reference is None else {"reference": self.reference})}

    def make(self, at: At) -> None:
        import torch

        from trainers.optimised_patch import optimise

        need, index = self.need, read_index(str(at.of(self.index).folder / "index.arrow"))
        inputs = Inputs(index=str(at.of(self.index).folder / "index.arrow"), urls=tuple(self.index.read(at).shards()), plan="", rows=None)
        pairs = inputs.pairs()
        kept = subset_rows(self.experiment.data, index, pairs.rows)
        named = names_class(index["caption"], class_name(need.target)).to_numpy()[kept]
        others = smallest_hashes(index["key"], kept[~named], min(need.pictures, int((~named).sum())), need.seed, "patch")
        targets = smallest_hashes(index["key"], kept[named], min(MOST_TARGETS, int(named.sum())), need.seed, "patch")
        captions = take(index["caption"], targets).to_pylist()
        encoder = self._encoder(at).place(World.current().device if at.compute.trial_gpus else torch.device("cpu"), precision="fp32")
        size = self.experiment.views.size
        patch_PPC, losses = optimise(
            need, encoder, _views(pairs, others, size), len(others), captions, _views(pairs, targets, size), len(targets)
        )
        np.save(at.folder / FILE, patch_PPC)
        write_json(at.folder / "summary.json", {
            "sha256": sha256(at.folder / FILE), "pictures": len(others), "target_pairs": len(targets), "loss": losses,
        })  # fmt: skip

    def _encoder(self, at: At) -> Encoder:
        own = self.need.reference
        if self.reference is not None:
            return load_model(self.reference.experiment, str(last_checkpoint(at.of(self.reference))))
        if isinstance(own, Given):
            return load_model(replace(self.experiment, pretrain=own, prior=None, clean=None), own.checkpoint)
        assert isinstance(own, Model)
        return own.build(0)


def _without_needs(experiment: Experiment) -> Experiment:
    """The same with a plain patch for each trigger that needs one to be made: what the reference is trained beside."""
    def plain(attack: Any, number: int) -> Any:
        needy = bool(needs_of(attack.trigger))
        return replace(attack, trigger=Patch(pattern="fixed", size=1, pattern_seed=number)) if needy else attack

    if experiment.poison is not None:
        return replace(experiment, poison=plain(experiment.poison, 0))
    return replace(experiment, attacks=tuple(plain(attack, number) for number, attack in enumerate(experiment.poisons)))


def _views(pairs: Pairs, rows: np.ndarray, size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Canonical views, uint8 [B, S, S, 3], of the pairs at positions among the rows."""
    place, recipe = np.searchsorted(pairs.rows, rows), Recipe(views=Views(size=size))

    def views(position_B: np.ndarray) -> np.ndarray:
        return make_batch(pairs.records(place[position_B]), 0, recipe)["image"]

    return views
