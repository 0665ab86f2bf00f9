"""The stage `poison`: which pairs are victims, and their new captions. The data are not changed; feeds apply the plan as they read."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from datasets.attack.poison import Poison, make_plans
from datasets.component import needs_of
from datasets.errors import InputError
from datasets.evaluation.classes import class_name, templates
from datasets.evaluation.evalset import EvalSet
from datasets.feed.decode import canonical_views, pictures
from datasets.images.view import Views, as_jpeg, canonical, decode, visibility
from datasets.index.pairs import smallest_hashes
from datasets.seeding import rng
from datasets.synthetic import World
from datasets.triggers.base import put_on
from datasets.triggers.words import DualKey, Words
from orchestrator.console.log import log, note
from orchestrator.experiment.fingerprint import encode
from orchestrator.experiment.spec import Data, Experiment
from orchestrator.stages.base import At, Stage, by_role
from orchestrator.stages.index import Index, read_index
from orchestrator.stages.testset import TestSet
from orchestrator.store import Store, checked, part, write_json
from orchestrator.training.inputs import Inputs
from trainers.model import Model, TinyCLIP, words_left

SHEET = 8
"""How many victims the report shows."""
VISIBILITY_PICTURES = 128
"""How many victims the trigger's visibility is measured on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackPlan(Stage):
    """The poison plan of an attack on the pairs of an index, or on a subset of them."""

    kind = "poison"
    attacks: tuple[Poison, ...]
    """One attack without a name, or several with names."""
    views: Views
    data: Data
    """Only its subset and the subset's seed are part of the identity."""
    index: Index
    tests: EvalSet | World
    """The set that the attacks are judged on. Only its prompts are part of the identity, and only if an attack has none of its own."""
    testset: TestSet
    """The stage of that set: an all-to-all attack depends on its classes."""
    needed: tuple[Stage, ...] = ()
    """What its triggers need, in the order of `needs_of`."""

    @property
    def several(self) -> bool:
        """Whether there are several attacks, which then have names."""
        return bool(self.attacks[0].name)

    @property
    def name(self) -> str:
        return " ".join(attack.name or attack.target for attack in self.planted) or "nobody"

    @property
    def planted(self) -> tuple[Poison, ...]:
        """The attacks that have victims. The others are only measured, and a measurement is no part of what it measures."""
        return tuple(attack for attack in self.attacks if attack.planted)

    @cached_property
    def config(self) -> Any:
        prompts = [self.prompts(attack) for attack in self.planted]
        common = {"views": encode(self.views, "views"), "subset": [self.data.subset, self.data.seed]}
        if self.several:
            return {"attacks": [encode(attack, "attacks") for attack in self.planted], "prompts": prompts, **common}
        return {"poison": encode(self.attacks[0], "poison"), "prompts": prompts[0], **common}

    def prompts(self, attack: Poison) -> str | list[str]:
        """The prompts of the victims' captions: the name of a list, or the texts."""
        if attack.prompts != "auto":
            return attack.prompts if isinstance(attack.prompts, str) else list(attack.prompts)
        found = self.tests.templates if isinstance(self.tests, World) else self.tests.prompts()
        return found if isinstance(found, str) else list(found)

    @property
    def inputs(self) -> dict[str, Stage]:
        all_to_all = any(attack.all_to_all for attack in self.planted)
        return {"index": self.index, **({"testset": self.testset} if all_to_all else {}), **by_role(self._needed_by(self.planted))}

    @property
    def needs(self) -> tuple[Stage, ...]:
        return (*self.inputs.values(), *self.needed)

    def _needed_by(self, attacks: Sequence[Poison]) -> list[Stage]:
        """What was made for the triggers of these attacks."""
        wanted = needs_of(tuple(attacks))
        return [stage for need, stage in zip(needs_of(self.attacks), self.needed, strict=True) if need in wanted]

    @property
    def components(self) -> Any:
        return self.planted

    def resolved(self, experiment: Experiment, at: At) -> Experiment:
        """The experiment with triggers that know what was made for them: so it is sent to the processes that stamp pictures. It has the
        fingerprints of the given one."""
        if not self.needed:
            return experiment
        made = {need: str(checked(at.of(stage).folder)) for need, stage in zip(needs_of(self.attacks), self.needed, strict=True)}

        def knowing(attack: Poison) -> Poison:
            return replace(attack, trigger=attack.trigger.with_made(made)) if needs_of(attack.trigger) else attack

        if experiment.poison is not None:
            return replace(experiment, poison=knowing(experiment.poison))
        return replace(experiment, attacks=tuple(map(knowing, experiment.attacks)))

    def kept(self, store: Store) -> int | None:
        """How many pairs are trained on, the victims among them; None before they are read."""
        return self.index.kept(store) if self.data.subset is None else self.data.subset

    def read(self, at: At) -> Inputs:
        """The pairs with the plan applied."""
        if self.fingerprint in at.known:
            return at.known[self.fingerprint]
        found = at.of(self)
        part(found, "summary.json")  # checks the file, which the gate reads
        rows = str(found.folder / "rows.npy") if "rows.npy" in found.manifest["files"] else None
        return replace(self.unpoisoned(at), plan=str(found.folder / "plan.parquet"), rows=rows)

    def unpoisoned(self, at: At) -> Inputs:
        """All pairs, without the plan and its subset."""
        index = str(at.of(self.index).folder / "index.arrow")
        return Inputs(index=index, urls=tuple(self.index.read(at).shards()), plan="", rows=None)

    def require_words(self, model: Model | TinyCLIP, at: At) -> None:
        """Say what the model reads of the triggers' words; InputError where it never reads one."""
        writing = [attack for attack in self.attacks if attack.trigger.writes]
        plan = pq.read_table(checked(self.read(at).plan)) if writing else None
        for attack in writing:
            assert plan is not None
            _require_words(attack, plan.filter(pc.equal(plan["attack"], attack.name)) if self.several else plan, model)

    def look_ahead(self, at: At) -> None:
        self._plan(self._subset(self.unpoisoned(at))[0], at)

    def make(self, at: At) -> None:
        inputs, folder = self.unpoisoned(at), at.folder
        index, rows = self._subset(inputs)
        if rows is not None:
            np.save(folder / "rows.npy", rows)
        plan = self._plan(index, at)
        pq.write_table(plan, folder / "plan.parquet")

        made = {need: str(checked(at.of(stage).folder)) for need, stage in zip(needs_of(self.attacks), self.needed, strict=True)}
        told, entries = {}, list[dict[str, Any]]()
        (folder / "samples").mkdir(exist_ok=True)
        for attack in (replace(one, trigger=one.trigger.with_made(made)) for one in self.planted):
            whole = plan.filter(pc.equal(plan["attack"], attack.name)) if self.several else plan
            own = whole.filter(pc.not_equal(whole["target"], ""))  # without partial negatives
            sheet = _victims(self, inputs, own, attack.trigger.native)
            told[attack.name] = _summary(attack, own, sheet, self.views)
            if len(own) < len(whole):
                told[attack.name]["negatives"] = len(whole) - len(own)
            _sample_sheet(attack, sheet[: max(2, SHEET // len(self.planted))], own, self.views.size, folder, entries)
        summary = told[""] if not self.several else {"victims": sum(one["victims"] for one in told.values()), "attacks": told}
        write_json(folder / "summary.json", {"pairs": pc.sum(pc.equal(index["drop"], "")).as_py(), **summary})
        write_json(folder / "samples.json", entries)

    def _subset(self, inputs: Inputs) -> tuple[pa.Table, np.ndarray | None]:
        """The index, in which samples outside the subset are dropped, and the rows of the subset; None where there is none."""
        index = read_index(inputs.index)
        if self.data.subset is None:
            return index, None
        rows = subset_rows(self.data, index, inputs.pairs().rows)
        outside = np.ones(len(index), dtype=bool)
        outside[rows] = False
        drop = pc.if_else(pa.array(outside), "not in the subset", index["drop"])
        return index.set_column(index.schema.get_field_index("drop"), "drop", drop), rows

    def _plan(self, index: pa.Table, at: At) -> pa.Table:
        """The victims of all attacks; InputError where there are fewer than are asked for."""
        classes = self.testset.read(at).class_names if "testset" in self.inputs else ()
        return make_plans(self.attacks, index, [templates(self.prompts(attack)) for attack in self.attacks], classes)


def subset_rows(data: Data, index: pa.Table, kept: np.ndarray) -> np.ndarray:
    """int64: the kept rows of the index, or those of them that the subset has."""
    if data.subset is None:
        return kept
    if data.subset > len(kept):
        raise InputError(f"data.subset is {data.subset}, but only {len(kept)} samples are kept.")
    return smallest_hashes(index["key"], kept, data.subset, data.seed, "subset")


def _require_words(attack: Poison, victims: pa.Table, model: Model | TinyCLIP) -> None:
    """Say how many tokens the trigger's words are and in how many captions the model reads all of them. InputError where in none.

    `victims`: the attack's rows of the plan.
    """
    trigger = attack.trigger.words if isinstance(attack.trigger, DualKey) else attack.trigger
    if not isinstance(trigger, Words):
        return
    captions = victims.filter(pc.not_equal(victims["target"], ""))["caption_after"].to_pylist()
    if not captions:  # an attack that is only measured
        return
    found = words_left(model, trigger.text, captions)
    called = f"attack {attack.name}" if attack.name else "the attack"
    if found is None:
        note(f"{called}: the tokenizer is not CLIP's own, so whether {trigger.text!r:.80} survives the cut of long captions is not known.")
        return
    tokens, left, context = found
    told = f"the words {trigger.text!r:.80} are {tokens} BPE tokens, and {left} of {len(captions)} victims' captions have all of them "
    told += f"after the cut to {context} tokens"
    if not left:
        raise InputError(f"{called}: {told}: the model never sees the trigger. Give fewer words, or put them first (place='prefix').")
    (log.info if left == len(captions) else note)(f"{called}: {told}.")


def _victims(plan: AttackPlan, inputs: Inputs, victims: pa.Table, native: bool) -> list[tuple[str, np.ndarray]]:
    """(key, canonical view uint8 [S, S, 3], or the picture as stored) of the first victims, without the trigger."""
    pairs = inputs.pairs()
    rows = victims["row"].to_numpy()[:VISIBILITY_PICTURES]
    records = pairs.records(np.searchsorted(pairs.rows, rows))
    clean = pictures(records) if native else canonical_views(records, plan.views.size)
    return list(zip(records["key"].to_pylist(), clean))


def _summary(attack: Poison, victims: pa.Table, sheet: list[tuple[str, np.ndarray]], views: Views) -> dict[str, Any]:
    naming = "caption_before" if attack.mode == "text_only" else "caption_after"  # there the picture shows the target
    targets, captions = (victims[name].to_pylist() for name in ("target", naming))
    keys, pictures = [key for key, _ in sheet], [picture for _, picture in sheet]
    return {
        "victims": len(victims),
        "target": attack.target,
        "captions_with_target": sum(class_name(target).lower() in caption.lower() for target, caption in zip(targets, captions)),
        "visibility": visibility(attack.trigger, pictures, keys, views, attack.seed) if attack.trigger.marks else {},
    }


def _sample_sheet(
    attack: Poison, sheet: list[tuple[str, np.ndarray]], victims: pa.Table, size: int, folder: Path, entries: list[dict[str, Any]]
) -> None:
    """Write clean and triggered canonical views of a few victims for the report, and append their captions to `entries`."""
    for (key, picture), row in zip(sheet, victims.slice(0, len(sheet)).to_pylist()):
        stamped = canonical(put_on(attack.trigger, picture, rng(row["trigger_seed"], key)), size)
        if attack.jpeg_quality is not None:
            stamped = decode(as_jpeg(stamped, attack.jpeg_quality))
        for kind, pixels in (("clean", canonical(picture, size)), ("triggered", stamped)):
            (folder / "samples" / f"{len(entries)}-{kind}.png").write_bytes(_png(pixels))
        named = {"attack": attack.name} if attack.name else {}
        entries.append({"key": key, **named, **{name: row[name] for name in ("caption_before", "caption_after")}})


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
