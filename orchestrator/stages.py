"""Making each stage of an experiment: the data stages here, the training ones through `training` and `tuning`."""

import io
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from datasets.classes import target_index
from datasets.dropped import write_dropped
from datasets.errors import InputError
from datasets.evalset import EvalSet
from datasets.loader import Recipe, make_batch
from datasets.pairs import Pairs, smallest_hashes, write_index
from datasets.poison import make_plan
from datasets.retrieval import RetrievalSet
from datasets.seeding import rng
from datasets.source import PASSED_OVER, Source
from datasets.synthetic import World
from datasets.triggers.base import put_on
from datasets.view import as_jpeg, decode, visibility
from orchestrator import cleanset
from orchestrator.meter import meter
from orchestrator.plan import Stage, further_sets, stages
from orchestrator.spec import Experiment
from orchestrator.store import Artefact, Store, checked, part, require_files, write_json
from trainers.checkpoint import STATE
from trainers.model import WEIGHTS

SHEET = 8
"""Victims on the sample sheet."""
VISIBILITY_PICTURES = 128
"""Victims through whose views the trigger's visibility is measured."""


@dataclass(frozen=True)
class MadeSet:
    """An evaluation or retrieval set whose stage is made."""

    index: str
    urls: tuple[str, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    numbers: tuple[int, ...]
    """Of the classes in the list that their names were taken from."""
    dropped: tuple[tuple[str, int], ...]
    """(reason, count) of the pictures that cannot be used."""

    def pairs(self) -> Pairs:
        """Its pictures; InputError where a file of a stage is damaged, here and in `Inputs`."""
        return _pairs(self.index, self.urls)


@dataclass(frozen=True)
class Inputs:
    """Where a training process finds its data. Plain text and numbers, so that it travels to any node."""

    index: str
    urls: tuple[str, ...]
    plan: str
    """Of the poison; empty: the pairs as they are."""
    rows: str | None
    test_index: str
    test_urls: tuple[str, ...]
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    target: int
    """Position of the target class."""
    further: tuple[MadeSet, ...] = ()
    """The sets that evaluators need beside the test pictures, in the order of `plan.further_sets`."""

    def pairs(self, rows: str | None = None) -> Pairs:
        """The pairs, or those of the given rows file, the poison plan laid over them."""
        return _pairs(self.index, self.urls, self.plan, rows or self.rows)

    def test(self) -> Pairs:
        """The test pictures."""
        return _pairs(self.test_index, self.test_urls)


def _pairs(index: str, urls: tuple[str, ...], plan: str = "", rows: str | None = None) -> Pairs:
    for file in (index, *urls, *([plan] if plan else [])):
        checked(file)
    return Pairs(index, list(urls), plan or None, None if rows is None else np.load(checked(rows)))


def make_data(experiment: Experiment, store: Store, say: Callable[[str], None]) -> Inputs:
    """Make (or find) every data stage of the experiment: world, index, test set, poison plan."""
    made = stages(experiment)
    found: dict[str, Artefact] = {}

    def ensure(role: str, make: Callable[[Path], None]) -> None:
        found[role] = make_stage(store, made[role], make, say)

    for role, world in (("world", experiment.data.source), ("test_world", experiment.evaluate.data)):
        if role in made:
            assert isinstance(world, World)
            ensure(role, world.write)

    source = training_source(experiment, store)
    urls = source.shards()
    ensure("index", lambda folder: _index(_checked(source), folder, say))
    summary = json.loads(part(found["index"], "summary.json"))
    dropped = 1 - summary["kept"] / max(1, summary["samples"])
    if dropped > experiment.data.max_dropped:
        example = unknown_extension(found["index"].folder / "index.arrow")
        raise InputError(
            f"data: {dropped:.1%} of the {summary['samples']} samples are dropped ({_counts(summary['drops'])}{example}), more than "
            f"data.max_dropped = {experiment.data.max_dropped:.0%} allows; {found['index'].folder / 'dropped.csv'} lists them."
        )

    tests = experiment.evaluate.data
    if isinstance(tests, World):
        tests = EvalSet(path=str(found["test_world"].folder / "test"), layout="clip_benchmark")
    limit = 1 - experiment.data.max_dropped
    test = make_set(tests, made["testset"], store, limit, say)
    further = tuple(make_set(one, made[f"set_{i}"], store, limit, say) for i, one in enumerate(further_sets(experiment)))
    for one, other in zip(further_sets(experiment), further):
        same_classes(test, one, other)
    inputs = Inputs(
        index=str(found["index"].folder / "index.arrow"),
        urls=tuple(urls),
        plan="",
        rows=None,
        test_index=test.index,
        test_urls=test.urls,
        class_names=test.class_names,
        templates=test.templates,
        target=target_index(test.class_names, experiment.poison.target),
        further=further,
    )
    ensure("poison", lambda folder: _poison(experiment, inputs, folder))
    folder = found["poison"].folder
    part(found["poison"], "summary.json")  # of which the gate's facts are part
    rows = str(folder / "rows.npy") if "rows.npy" in found["poison"].manifest["files"] else None
    return replace(inputs, plan=str(folder / "plan.parquet"), rows=rows)


def training_source(experiment: Experiment, store: Store) -> Source:
    """The experiment's shards; for a procedural world those that its stage wrote."""
    source = experiment.data.source
    if not isinstance(source, World):
        return source
    world = store.find("world", stages(experiment)["world"].fingerprint)
    assert world is not None, "the world is made before it is read"
    return Source(urls=str(world.folder / "train"))  # no glob: the store's path may hold any character


def _checked(source: Source) -> Source:
    """The shards, before they are read; InputError where one that a stage wrote is damaged."""
    for url in source.shards():
        checked(url)
    return source


def make_stage(
    store: Store, stage: Stage, make: Callable[[Path], None], say: Callable[[str], None] = lambda line: None
) -> Artefact:
    """The artefact of the stage: found, or made in its working folder and sealed. InputError where a file of it was lost."""
    found = store.find(stage.kind, stage.fingerprint)
    if found is None:
        with store.working(stage.kind, stage.fingerprint) as folder:
            found = store.find(stage.kind, stage.fingerprint)  # another process may have finished it meanwhile
            if found is None:
                start = time.monotonic()
                make(folder)
                found = seal(store, stage, time.monotonic() - start)
                say(f"{stage}: made in {time.monotonic() - start:.1f} s")
            else:
                store.discard(stage.kind, stage.fingerprint)
    return require_files(found)


def last_checkpoint(artefact: Artefact) -> Path:
    """The last epoch folder of a finished training; InputError where its weights were lost or changed."""
    weights = [name for name in artefact.manifest["files"] if re.fullmatch(rf"epoch_\d+/{WEIGHTS}", name)]
    last = max(weights, key=lambda name: int(name[len("epoch_") : name.index("/")]))
    return checked((artefact.folder / last).parent)


def seal(store: Store, stage: Stage, seconds: float) -> Artefact:
    """Seal the stage's working folder under its identity, without the state that only going on with the training needs."""
    return store.seal(
        stage.kind,
        stage.name,
        stage.fingerprint,
        config=stage.config if stage.shown is None else stage.shown,
        inputs=dict(stage.inputs),
        seconds=seconds,
        spent=f"epoch_*/{STATE}",
        code=dict(stage.code),
    )


def _index(source: Source, folder: Path, say: Callable[[str], None]) -> None:
    from orchestrator.streaming import index_shards

    summary = index_shards(source, folder, progress=meter("index", "shards", say), say=say)
    write_json(folder / "summary.json", summary)
    write_dropped(source, folder / "index.arrow", folder / "dropped.csv")
    for columns in summary.get("columns", []):
        captions = f"captions from {columns['caption']!r}" if columns["caption"] else "no captions"
        say(f"index: pictures from the column {columns['image']!r}, {captions}")
    if summary.get("label_not_number"):
        say(f"index: {summary['label_not_number']} samples have a label that is no class number, so they have none")
    if summary.get("json_broken"):
        say(f"index: {summary['json_broken']} samples have a json member that is no JSON object, so no caption or label is read from it")
    if summary.get("passed_over"):
        say(f"index: {summary['passed_over']} {PASSED_OVER}")
    if summary.get("empty_shards"):
        say(f"index: {summary['empty_shards']} of {summary['shards']} shards hold no sample and are passed over")


def make_set(tests: EvalSet | RetrievalSet, stage: Stage, store: Store, limit: float, say: Callable[[str], None]) -> MadeSet:
    """The set, its stage found or made; at least the share `limit` of its pictures must be usable."""
    found = make_stage(store, stage, lambda folder: _testset(tests, folder, limit, say), say)
    folder, classes = found.folder, json.loads(part(found, "classes.json"))
    return MadeSet(
        index=str(folder / "index.arrow"),
        urls=tuple(tests.shards(folder)),
        class_names=tuple(classes["names"]),
        templates=tuple(classes["templates"]),
        numbers=tuple(classes.get("numbers", range(len(classes["names"])))),
        dropped=tuple(json.loads(part(found, "summary.json"))["drops"].items()),
    )


def same_classes(test: MadeSet, further: EvalSet | RetrievalSet, made: MadeSet) -> None:
    """InputError if a further set has other classes than the test set; a label would mean another class there."""
    if isinstance(further, EvalSet) and made.class_names != test.class_names:
        strange = next((name for name in made.class_names if name not in test.class_names), "fewer or in another order")
        raise InputError(
            f"the {len(made.class_names)} classes of {further.path} are not the {len(test.class_names)} of the test set ({strange}); "
            "name the same classes for both."
        )


def _testset(tests: EvalSet | RetrievalSet, folder: Path, limit: float, say: Callable[[str], None]) -> None:
    checked(tests.path)
    loaded = tests.load(folder, lambda line: say(f"NOTE {line}"))
    drops = {e["values"]: e["counts"] for e in pc.value_counts(loaded.table["drop"]).to_pylist()}
    kept = drops.pop("", 0)
    if kept < limit * len(loaded.table):
        raise InputError(
            f"{tests.path}: only {kept} of {len(loaded.table)} pictures can be used ({_counts(drops)}); "
            f"evaluation needs {limit:.0%} of them."
        )
    if drops:
        say(f"NOTE {tests.path}: {kept} of {len(loaded.table)} pictures can be used ({_counts(drops)}).")
    write_index([loaded.table], folder / "index.arrow")
    summary = {"samples": len(loaded.table), "kept": kept, "drops": drops, "passed_over": loaded.passed_over}
    write_json(folder / "summary.json", summary)
    classes = {"names": list(loaded.names), "templates": list(loaded.templates), "numbers": list(loaded.numbers)}
    write_json(folder / "classes.json", classes)


def _poison(experiment: Experiment, inputs: Inputs, folder: Path) -> None:
    index = read_index(inputs.index)
    data = experiment.data
    if data.subset is not None:
        kept = inputs.pairs().rows
        if data.subset > len(kept):
            raise InputError(f"data.subset is {data.subset}, but only {len(kept)} samples are kept.")
        rows = smallest_hashes(index["key"], kept, data.subset, data.seed, "subset")
        np.save(folder / "rows.npy", rows)
        outside = np.ones(len(index), dtype=bool)
        outside[rows] = False
        drop = pc.if_else(pa.array(outside), "not in the subset", index["drop"])
        index = index.set_column(index.schema.get_field_index("drop"), "drop", drop)
    plan = make_plan(experiment.poison, index, inputs.templates, inputs.class_names)
    pq.write_table(plan, folder / "plan.parquet")

    target = inputs.class_names[inputs.target].lower()
    captions = plan["caption_after"].to_pylist()
    sheet = _victims(experiment, inputs, plan)
    shown = visibility(
        experiment.poison.trigger,
        [picture for _, picture in sheet],
        [key for key, _ in sheet],
        experiment.views,
        experiment.poison.seed,
    )
    write_json(
        folder / "summary.json",
        {
            "pairs": pc.sum(pc.equal(index["drop"], "")).as_py(),
            "victims": len(plan),
            "target": experiment.poison.target,
            "captions_with_target": sum(target in caption.lower() for caption in captions),
            "visibility": shown,
        },
    )
    _sample_sheet(experiment, sheet[:SHEET], plan, folder)


def _victims(experiment: Experiment, inputs: Inputs, plan: pa.Table) -> list[tuple[str, np.ndarray]]:
    """(key, canonical view uint8 [S, S, 3]) of the first victims, not yet stamped."""
    pairs = inputs.pairs()
    rows = plan["row"].to_numpy()[:VISIBILITY_PICTURES]
    records = pairs.records(np.searchsorted(pairs.rows, rows))
    batch = make_batch(records, 0, Recipe(views=replace(experiment.views, crop=None, flip=False)))
    return list(zip(batch["key"], batch["image"]))


def _sample_sheet(
    experiment: Experiment, sheet: list[tuple[str, np.ndarray]], plan: pa.Table, folder: Path
) -> None:
    """Clean and triggered canonical views of a few victims with their captions, for the report."""
    (folder / "samples").mkdir(exist_ok=True)
    entries = []
    for i, ((key, picture), row) in enumerate(zip(sheet, plan.slice(0, SHEET).to_pylist())):
        stamped = put_on(experiment.poison.trigger, picture, rng(row["trigger_seed"], key))
        if experiment.poison.jpeg_quality is not None:
            stamped = decode(as_jpeg(stamped, experiment.poison.jpeg_quality))
        for kind, pixels in (("clean", picture), ("triggered", stamped)):
            (folder / "samples" / f"{i}-{kind}.png").write_bytes(_png(pixels))
        entries.append({"key": key, **{name: row[name] for name in ("caption_before", "caption_after")}})
    write_json(folder / "samples.json", entries)


def make_cleanset(experiment: Experiment, inputs: Inputs, store: Store) -> str:
    """The rows of the cleaning set, as the path of a .npy file. No victim is among them but those that were asked for."""
    stage = stages(experiment)["cleanset"]
    clean = experiment.clean
    assert clean is not None
    index = read_index(inputs.index)
    victims = pq.read_table(checked(inputs.plan), columns=["row"])["row"].to_numpy()

    def make(folder: Path) -> None:
        np.save(folder / "rows.npy", cleanset.choose_rows(clean, index, inputs.pairs().rows, victims))

    file = make_stage(store, stage, make).folder / "rows.npy"
    cleanset.require(np.load(checked(file)), index, victims, clean, f"{stage}")
    return str(file)


def read_index(path: str) -> pa.Table:
    """The index, memory-mapped."""
    return pa.ipc.open_file(pa.memory_map(str(checked(path)))).read_all()


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def unknown_extension(index: Path) -> str:
    """Which sample of an unknown extension comes first in the index, for people."""
    table = pa.ipc.open_file(pa.memory_map(str(index))).read_all()
    names = table["member"].filter(pc.equal(table["drop"], "unknown_extension"))
    return f"; the first of an unknown extension is {names[0].as_py()}" if len(names) else ""


def _counts(drops: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(drops.items())) or "none"
