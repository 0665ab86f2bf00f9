"""`evaluate` on sets of the user's choice: zero-shot, linear probe, retrieval; results in CLIP_benchmark's form."""

import argparse
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from datasets.errors import InputError, NotThisSet
from datasets.evaluation.classes import target_index
from datasets.evaluation.evalset import EvalSet
from datasets.evaluation.known_sets import SETS, canonical_name
from datasets.evaluation.retrieval import RetrievalSet
from datasets.feed.loader import Batch, Recipe, eval_batches
from orchestrator.console.log import log, note, recording
from orchestrator.experiment.spec import Compute, Experiment, Sweep
from orchestrator.stages.base import At, ensure
from orchestrator.stages.graph import knowing_made
from orchestrator.stages.testset import TestSet, require_same_classes, set_name
from orchestrator.store import Store, write_json
from orchestrator.sweep.targets import GIVEN, OWN, experiments_of
from orchestrator.training.inputs import MadeSet
from trainers.distributed import World
from trainers.encoder import Encoder
from trainers.evaluate.base import Evaluator, Material
from trainers.evaluate.features import embedded
from trainers.evaluate.linear_probe import LinearProbe
from trainers.evaluate.retrieval import Retrieval
from trainers.evaluate.zeroshot import Aim, ZeroShotASR
from trainers.model import Model

CLASSIFICATION, PROBE, RETRIEVAL = "zeroshot_classification", "linear_probe", "zeroshot_retrieval"
_FIELDS = {
    CLASSIFICATION: {
        "acc1": "zeroshot/top1", "acc5": "zeroshot/top5", "mean_per_class_recall": "zeroshot/mean_per_class",
        "acc1_low": "zeroshot/top1_low", "acc1_high": "zeroshot/top1_high", "asr1": "asr/top1", "asr5": "asr/top5", "asr10": "asr/top10",
        "asr1_low": "asr/top1_low", "asr1_high": "asr/top1_high", "asr_floor": "asr/floor", "asr_recovery": "asr/ra",
    },
    PROBE: {
        "acc1": "probe/top1", "acc5": "probe/top5", "mean_per_class_recall": "probe/mean_per_class",
        "acc1_low": "probe/top1_low", "acc1_high": "probe/top1_high", "asr1": "probe_asr/top1", "asr5": "probe_asr/top5",
        "asr10": "probe_asr/top10", "asr1_low": "probe_asr/top1_low", "asr1_high": "probe_asr/top1_high", "asr_floor": "probe_asr/floor",
    },
    RETRIEVAL: {
        **{f"image_retrieval_recall@{k}{end}": f"retrieval/text_to_image{k}{end}" for k in (1, 5, 10) for end in ("", "_low", "_high")},
        **{f"text_retrieval_recall@{k}{end}": f"retrieval/image_to_text{k}{end}" for k in (1, 5, 10) for end in ("", "_low", "_high")},
        **{f"asr{k}{end}": f"retrieval_asr/top{k}{end}" for k in (1, 5, 10) for end in ("", "_low", "_high")},
        **{f"asr_floor{k}": f"retrieval_asr/floor{k}" for k in (1, 5, 10)},
    },
}  # fmt: skip
"""CLIP_benchmark's name of a metric, or ours if it has none → our metric, in percent."""
_WHOLE = {
    CLASSIFICATION: {"n": "zeroshot/n", "asr_n": "asr/n"},
    PROBE: {"n": "probe/n", "asr_n": "probe_asr/n", "train_n": "probe/train_n", "C": "probe/C", "C_at_end_of_grid": "probe/C_at_end",
            "converged": "probe/converged"},
    RETRIEVAL: {"images": "retrieval/images", "captions": "retrieval/captions", "asr_n": "retrieval_asr/n",
                "asr_captions": "retrieval_asr/captions"},
}  # fmt: skip


def evaluate(options: argparse.Namespace, sweep: Sweep, compute: Compute) -> int:
    """`cleansweep evaluate`: print the results as JSON, and write them where `--out` says."""
    from orchestrator.running.driver import evaluate_checkpoint

    given = {flag: named_paths(flag, getattr(options, flag.replace("-", "_"))) for flag in ("on", "retrieval", "linear-probe")}
    checkpoint, matters = options.checkpoint, GIVEN if any(given.values()) else OWN
    experiment = experiments_of(sweep, options.overrides, [checkpoint], matters, compute.store)[checkpoint]
    own = getattr(experiment.evaluate.data, "name", "") or "test"
    tasks = {"on": CLASSIFICATION, "linear-probe": PROBE, "retrieval": RETRIEVAL}
    expected = [(name, task) for flag, task in tasks.items() for name in given[flag]]
    if options.out:  # before anything is measured
        out_places(options.out, expected or [(own, CLASSIFICATION)], model_name(experiment))
    result: Any
    if any(given.values()):
        result = evaluate_on(experiment, compute, checkpoint, given["on"], given["retrieval"], given["linear-probe"])
        records = result
    else:
        result = evaluate_checkpoint(experiment, compute, checkpoint)
        records = [record(own, experiment, checkpoint, CLASSIFICATION, result)]
    if options.out:
        write_records(records, options.out)
    print(json.dumps(result, indent=1))
    return 0


def evaluate_on(
    experiment: Experiment,
    compute: Compute,
    checkpoint: str,
    on: dict[str, str],
    retrieval: dict[str, str],
    probes: dict[str, str],
) -> list[dict[str, Any]]:
    """Records of the checkpoint on the sets: name → path; `probes` are the training pictures of some of `on`.

    All sets are opened before the model is, so that a mistake is reported early. One forward pass of the pictures of each set.
    """
    strange = next((name for name in probes if name not in on), None)
    if strange is not None:
        raise InputError(f"--linear-probe {strange}: it is tested on --on {strange}=…, which is not given.")
    store = Store(compute.store)
    pairs = {name: RetrievalSet(path=path) for name, path in retrieval.items()}
    for flag, split, sets in (("--on", "test", on), ("--linear-probe", "train", probes), ("--retrieval", "", pairs)):
        for name, given in sets.items():  # checked before anything is written
            _stage(flag, name, given if isinstance(given, RetrievalSet) else _evalset(name, given, split), 0)
    store.prepare()
    with recording(store.root, "evaluate"):
        log.debug("%s is measured on %s", checkpoint, ", ".join((*on, *retrieval)))
        return _records(experiment, compute, store, checkpoint, on, pairs, probes)


def _records(
    experiment: Experiment, compute: Compute, store: Store, checkpoint: str, on: dict[str, str], pairs: dict[str, RetrievalSet],
    probes: dict[str, str],
) -> list[dict[str, Any]]:  # fmt: skip
    from orchestrator.training.job import load_model, measured_as, start

    limit = 1 - experiment.data.max_dropped
    tests = {name: _open("--on", name, _evalset(name, path, "test"), store, limit) for name, path in on.items()}
    trains: dict[str, tuple[EvalSet, MadeSet]] = {}
    for name, path in probes.items():
        train = _evalset(name, path, "train")
        trains[name] = train, _open("--linear-probe", name, train, store, limit)
        require_same_classes(tests[name], train, trains[name][1])
    found = {name: _open("--retrieval", name, one, store, limit) for name, one in pairs.items()}

    world = start(compute.cpus_per_worker, compute.gpus_per_worker)
    experiment = knowing_made(experiment, At(store=store))
    encoder = load_model(experiment, checkpoint)
    encoder.place(world.device)
    run = measured_as(checkpoint)(partial(_measure, encoder, experiment, world))
    records = []
    for name, made in tests.items():
        aims, refused = _aims(experiment, made)
        if refused:
            note(f"{name}: no attack success rate: {refused}")
        zero_shot = ZeroShotASR(class_names=made.class_names, templates=made.templates, aims=aims)
        evaluators: list[tuple[str, Evaluator]] = [(CLASSIFICATION, zero_shot)]
        further: dict[EvalSet | RetrievalSet, MadeSet] = {}
        if name in trains:
            evaluators.append((PROBE, LinearProbe(train=trains[name][0])))
            further[trains[name][0]] = trains[name][1]
        for task, metrics in run(made, evaluators, further, aims[0].target if aims else None, bool(aims)):
            records.append(record(name, experiment, checkpoint, task, metrics, refused, made))
    if found and experiment.poisons[0].all_to_all:
        raise InputError("--retrieval: the first attack is all-to-all, so there is no word whose captions it would attract.")
    for name, made in found.items():
        word = re.sub(r"@\d+$", "", experiment.poisons[0].target)
        ((task, metrics),) = run(made, [(RETRIEVAL, Retrieval(data=pairs[name], target=word))], {pairs[name]: made}, None, True)
        refused = _unanswered(metrics, word)
        if refused:
            note(f"{name}: no attack success rate: {refused}")
        records.append(record(name, experiment, checkpoint, task, metrics, refused, made))
    return records


def record(
    dataset: str, experiment: Experiment, checkpoint: str, task: str, metrics: dict[str, Any], refused: str = "",
    made: MadeSet | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One result in CLIP_benchmark's form, shares as fractions; with ours: the attack, intervals, n, what was dropped."""
    shares = {name: metrics[own] / 100 for name, own in _FIELDS[task].items() if own in metrics}
    if made is not None and task != RETRIEVAL:  # with few classes, almost every class is in the top k
        shares = {name: share for name, share in shares.items() if name not in trivial(len(made.class_names))}
    whole = {name: metrics[own] for name, own in _WHOLE[task].items() if own in metrics}
    return {
        "dataset": dataset,
        "model": model_name(experiment),
        "pretrained": checkpoint,
        "task": task,
        "metrics": shares | whole,
        "language": "en",
        "target": ", ".join(attack.target for attack in experiment.poisons),
        **({"asr_refused": refused} if refused else {}),
        **({"dropped": dict(made.dropped)} if made is not None and made.dropped else {}),
    }


def trivial(classes: int) -> set[str]:
    """Top-k metrics that mean little with this many classes, because at most one class is not in the top k."""
    return {f"{what}{k}" for what in ("acc", "asr") for k in (5, 10) if k >= classes - 1}


def write_records(records: list[dict[str, Any]], out: str) -> None:
    """Write all records as a list into one file, or each into its own file if the name holds `{dataset}` (and `{task}`, `{model}`)."""
    places = out_places(out, [(entry["dataset"], entry["task"]) for entry in records], records[0]["model"])
    for place, entry in zip(places, records):
        write_json(place, entry if "{" in out else records)


def out_places(out: str, results: list[tuple[str, str]], model: str) -> list[Path]:
    """The file of each (data set, task), or one for all. InputError if it cannot be written there."""
    try:
        named = [out.format(dataset=name.replace("/", "_"), task=task, model=model.replace("/", "_")) for name, task in results]
    except (KeyError, IndexError, ValueError, AttributeError, TypeError):
        raise InputError(f"--out {out}: in braces accepted are {{dataset}}, {{task}} and {{model}}.") from None
    places = [Path(name) for name in (named if "{" in out else [out])]
    if len(set(places)) < len(places):
        raise InputError(f"--out {out} gives several results one name; use {{dataset}} and {{task}}.")
    for place in places:
        if not place.parent.is_dir():
            raise InputError(f"--out {out}: the folder {place.parent} does not exist.")
        if place.is_dir():
            raise InputError(f"--out {out}: {place} is a folder; give the name of a file.")
    return places


def model_name(experiment: Experiment) -> str:
    """The model's name for CLIP_benchmark."""
    model = experiment.pretrain.model
    return model.name if isinstance(model, Model) else type(model).__name__


def _evalset(name: str, path: str, split: str) -> EvalSet:
    return EvalSet(path=path, name=canonical_name(name), split=split)


def _open(flag: str, name: str, tests: EvalSet | RetrievalSet, store: Store, limit: float) -> MadeSet:
    stage, at = _stage(flag, name, tests, limit), At(store=store)
    try:
        ensure(stage, at)
        return stage.read(at)
    except InputError as error:
        raise _of(flag, name, tests, error) from error


def _stage(flag: str, name: str, tests: EvalSet | RetrievalSet, limit: float) -> TestSet:
    stage = TestSet(tests=tests, name=set_name(tests), least=limit)
    try:
        stage.fingerprint  # noqa: B018 (its files are read)
    except InputError as error:
        raise _of(flag, name, tests, error) from error
    return stage


def _of(flag: str, name: str, tests: EvalSet | RetrievalSet, error: InputError) -> InputError:
    """The error with the set's name. If the files do not have the expected layout, a hint says that the name may be wrong."""
    known = f" (No set is known by the name {name}; known are {', '.join(SETS)}.)"
    unexplained = isinstance(error, NotThisSet) and isinstance(tests, EvalSet) and not tests.name
    return InputError(f"{flag} {name}: {error}{known if unexplained else ''}")


def _aims(experiment: Experiment, made: MadeSet) -> tuple[tuple[Aim, ...], str]:
    """(the attacks with their targets among the set's classes, ""), or (none, why one of them has no target there)."""
    aims = []
    for attack in experiment.poisons:
        try:
            target = None if attack.all_to_all else target_index(made.class_names, attack.target, made.numbers)
        except InputError as error:
            return (), str(error)
        text_only, own = attack.mode == "text_only", made.pairs().labels() == target
        if target is not None and (not own.any() if text_only else own.all()):
            return (), f"{'no' if text_only else 'every'} picture is of the target {attack.target!r}{'' if text_only else ' itself'}."
        seed = experiment.evaluate.seed
        aims.append(Aim(name=attack.name, target=target, trigger=attack.trigger, seed=seed, text_only=text_only))
    return tuple(aims), ""


def _unanswered(metrics: dict[str, Any], word: str) -> str:
    if not metrics.get("retrieval_asr/captions"):
        return f"no caption names {word!r}."
    return "" if metrics["retrieval_asr/n"] else f"every picture has a caption that names {word!r}."


def _measure(
    encoder: Encoder,
    experiment: Experiment,
    world: World,
    made: MadeSet,
    evaluators: list[tuple[str, Evaluator]],
    sets: dict[EvalSet | RetrievalSet, MadeSet],
    target: int | None,
    triggered: bool,
) -> list[tuple[str, dict[str, Any]]]:
    """(task, metrics) of each evaluator. The features of the test pictures are computed once for all evaluators."""
    spec = experiment.evaluate
    recipe = experiment.recipe(seed=spec.seed) if triggered else Recipe(views=experiment.views, seed=spec.seed)

    def batches(one: MadeSet) -> Iterator[Batch]:
        return eval_batches(one.pairs(), recipe, spec.batch_size, world.rank, world.size)

    once = embedded(encoder, batches(made)) if len(evaluators) > 1 else None
    material = Material(
        test=lambda: batches(made) if once is None else once,
        sets={one: partial(batches, further) for one, further in sets.items()},
        pairs=made.pairs(),
        recipe=recipe,
        batch_size=spec.batch_size,
        world=world,
        target=target,
        class_names=made.class_names,
        templates=made.templates,
    )
    return [(task, dict(evaluator.measure(encoder, evaluator.open(material), world))) for task, evaluator in evaluators]


def named_paths(flag: str, given: list[str]) -> dict[str, str]:
    """Name → path, from texts NAME=PATH. InputError for another form or a repeated name."""
    found: dict[str, str] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path:
            raise InputError(f"--{flag} {text}: write NAME=PATH, e.g. --{flag} cifar10=/data/cifar10.")
        if name in found:
            raise InputError(f"--{flag} names {name} twice.")
        found[name] = path
    return found
