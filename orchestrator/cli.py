"""The command line. Nothing heavy is imported before a command needs it, so `--help` answers at once."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets.errors import InputError

DESCRIPTION = "Backdoors in CLIP: poison, pre-train, clean in sweeps, compare accuracy with attack success."
OVERRIDES = (
    "Any field of the sweep's experiment can be overridden by its dotted path, e.g. --clean.lr 1e-3 or "
    "--pretrain.epochs=5; `plan` prints the fields. Where the sweep varies a whole component, each of its values that has the field "
    "gets it."
)
SEEDS = "repeat every pre-training of the sweep with these seeds, in place of its own"


def run(arguments: list[str]) -> int:
    """Run one command; the exit code is 0 only when all it was asked for is done."""
    parser = _parser()
    try:
        options, rest = parser.parse_known_args(arguments)
        if options.command is None:
            parser.print_help()
            return 0
        if getattr(options, "store", None) == "":
            raise InputError("--store is empty; accepted: the folder for all results.")
        options.overrides = _overrides(rest, options.command)
        return options.handler(options)
    except InputError as error:
        print(f"cleansweep: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cleansweep: interrupted; the same command continues where this one stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        cause = getattr(error, "cause", error)  # Ray's own hybrid has none of the original's fields
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        where = f" {cause.filename}" if cause.filename else ""
        print(f"cleansweep: {cause.strerror}:{where}. What was finished is kept; run the same command again.", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if type(error).__name__ not in ("StageError", "TrackingError"):
            raise
        print(f"cleansweep: {error}", file=sys.stderr)
        return 1


class _Parser(argparse.ArgumentParser):
    """One that says a mistake as every other is said."""

    def error(self, message: str) -> Any:
        message = message.removeprefix("argument ").replace("expected one argument", "it needs a value, which begins with no dash")
        raise InputError(f"{message}; see `{self.prog} --help`.")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from None


def _number(text: str) -> float:
    try:
        if (value := float(text)) == value:  # nan is equal to nothing
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number")


def _seed_list(text: str) -> list[int]:
    seeds = [int(part) if part.strip().isdecimal() else -1 for part in text.split(",")]
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds; accepted: whole numbers from 0 up, each once, e.g. 0,1,2")
    return seeds


_KINDS: dict[Any, Callable[[str], Any]] = {int: _whole, float: _number, str: str}


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("cleansweep", description=DESCRIPTION, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="command")

    def command(name: str, handler: Callable[[Any], int], text: str, **options: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False, **options)
        added.set_defaults(handler=handler)
        return added

    def with_sweep(name: str, handler: Callable[[Any], int], text: str) -> argparse.ArgumentParser:
        added = command(name, handler, text, epilog=OVERRIDES)
        added.add_argument("sweep", help="module (sweeps.quickstart) or .py file that holds a SWEEP")
        added.add_argument("--miniature", action="store_true", help="its MINIATURE: small, over the procedural world")
        added.add_argument("--seeds", type=_seed_list, metavar="0,1,2", help=SEEDS)
        _compute_flags(added)
        return added

    planned = with_sweep("plan", _plan, "Show the stages of a sweep: what is stored, what would run, what it would cost.")
    planned.add_argument("--samples-per-second", type=_number, help="training rate to estimate with")
    planned.add_argument("--json", action="store_true", help="print the plan as JSON")
    ran = with_sweep("run", _run, "Run a sweep to its end. What exists is not made again; an interrupted run continues.")
    ran.add_argument("--gate", choices=("stop", "warn"), help="what to do when the attack did not take [the sweep's own]")
    shown = command("show", _show, "List what a store holds, or print one artefact.")
    shown.add_argument("fingerprint", nargs="?", help="first digits of an artefact's fingerprint")
    shown.add_argument("--store", default="store")
    shown.add_argument("--verify", action="store_true", help="check every file against the hash in its manifest")
    with_sweep("report", _report, "Write the report of a sweep from what the store holds.")
    claimed = command("claims", _claims, "Judge the claims of the study by what the store holds of several sweeps, taken together.",
                      epilog=OVERRIDES)
    claimed.add_argument("sweep", nargs="+", help="modules or .py files, as for `run`")
    claimed.add_argument("--miniature", action="store_true", help="their MINIATURE")
    claimed.add_argument("--seeds", type=_seed_list, metavar="0,1,2", help=SEEDS)
    claimed.add_argument("--store", default="store")
    ui = command("ui", _ui, "Open MLflow on this machine (loopback only).")
    ui.add_argument("--store", default="store")
    ui.add_argument("--tracking-uri", default="")
    ui.add_argument("--port", type=_whole, default=5000)
    poisoned = with_sweep("poison", _poison, "Write the sweep's poisoned shards as files.")
    poisoned.add_argument("--out", required=True, help="folder for the shards; continued if it was begun")
    measured = with_sweep("evaluate", _evaluate, "Zero-shot accuracy and attack success of a checkpoint, as JSON.")
    measured.add_argument("--checkpoint", required=True, help="epoch folder, .safetensors or .pt file, or open_clip tag; measured as the "
                          "experiment of the sweep whose stage made it, or else the one that overrides choose")
    measured.add_argument("--on", action="append", default=[], metavar="NAME=PATH",
                          help="measure on this set instead of the sweep's own; a known name (cifar10, imagenetv2, …) says what to look "
                          "for at the path, else class folders, labels.csv or tars; may be repeated")
    measured.add_argument("--linear-probe", action="append", default=[], metavar="NAME=PATH",
                          help="also a linear probe on the set NAME of --on: where its training pictures lie (known names: the same path)")
    measured.add_argument("--retrieval", action="append", default=[], metavar="NAME=PATH",
                          help="retrieval on Karpathy's JSON with its pictures, or tars of jpg and txt; may be repeated")
    measured.add_argument("--out", help="write the results as CLIP_benchmark's JSON: a list, or a file each where the name holds {dataset}")
    analysed = with_sweep("analyse", _analyse, "What checkpoints make of the training pairs: similarities as JSON, pictures as PNG.")
    analysed.add_argument("--checkpoint", required=True, nargs="+", help="as for evaluate; the epochs of a stage one after another")
    analysed.add_argument("--out", type=Path, help="folder for pictures and arrays [analysis/ in the store]")
    ingested = command("ingest", _ingest, "Pack a folder or CSV of pictures and captions into shards.")
    ingested.add_argument("source", help="folder of pictures, or a CSV/TSV of paths and captions")
    ingested.add_argument("out", help="folder for the shards; must be new or empty")
    ingested.add_argument("--shard-size", type=_whole, default=1000, help="samples in a shard")
    ingested.add_argument("--image-key", default="image")
    ingested.add_argument("--caption-key", default="caption")
    ingested.add_argument("--delimiter", default="auto")
    ingested.add_argument("--captions", default="txt", help="of a folder: txt (a file beside each picture) | folder (its name)")
    ingested.add_argument("--resize", type=_whole, help="shrink pictures to this shorter side in pixels, as JPEG")
    ingested.add_argument("--label-key", default="label")
    ingested.add_argument("--classes", default="none", help="none | folder: the top folder is the class")
    fetched = command("fetch", _fetch, "Fetch a list of web addresses and captions (CC3M, CC12M) into shards.")
    fetched.add_argument("list", help="TSV or CSV of addresses and captions, with or without a header line")
    fetched.add_argument("out", help="folder for the shards, seen by all nodes; continued if fetch began it")
    for flag, kind, text in FETCH:
        fetched.add_argument(f"--{flag}", type=_KINDS[kind], default=None, help=text)
    fetched.add_argument("--url-column", default="", help="name, or number from 1 [found by its addresses]")
    fetched.add_argument("--caption-column", default="", help="name, or number from 1 [by name, or the only other one]")
    fetched.add_argument("--delimiter", default="auto")
    fetched.add_argument("--allow-private", action="store_true", help="connect to private and loopback addresses too")
    fetched.add_argument("--retry-failed", action="store_true", help="try again what failed and may have gone by")
    fetched.add_argument("--tasks", type=_whole, help="shards at a time in the cluster [one a core]")
    fetched.add_argument("--num-cpus", type=_whole, help="cores of a Ray started here [all]")
    doctor = command("doctor", _doctor, "Check this machine: versions, cores, disk, GPU, store, tracking server.")
    doctor.add_argument("--store", default="store")
    doctor.add_argument("--tracking-uri", default="")
    return parser


def _compute_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where it runs (never changes a result)")
    for flag, kind, text in COMPUTE:
        group.add_argument(f"--{flag}", type=_KINDS[kind], default=None, help=text)


COMPUTE: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("store", str, "folder for all results, seen by all nodes [store]"),
    ("tracking-uri", str, "MLflow tracking URI [sqlite in the store]"),
    ("feed", str, "local | ray: who reads the shards while training [local]"),
    ("workers", int, "processes of a pre-training [1]"),
    ("cpus-per-worker", float, "cores of each [1]"),
    ("gpus-per-worker", float, "GPUs of each [0]"),
    ("loader-workers", int, "reading processes of each, with the local feed [0]"),
    ("feed-cpus", int, "decoding tasks of each, with the Ray feed [1]"),
    ("trial-cpus", float, "cores of a trial [1]"),
    ("trial-gpus", float, "GPUs of a trial, may be a fraction [0]"),
    ("max-concurrent-trials", int, "[as many as fit]"),
    ("keep", str, "checkpoints of a cleaning that stay: last | all [last]"),
    ("retries", int, "restarts of a stage whose process died [2]"),
    ("cache", str, "folder for decoded pictures on each machine's own disk | auto | off [auto]"),
    ("num-cpus", int, "cores of a Ray started here [all]"),
)
"""Kept beside `spec.Compute` so that --help need not import it; a test holds the two together."""


EXPERIMENT = ("data", "views", "poison", "pretrain", "evaluate", "clean", "prior", "eda")
"""The fields of `spec.Experiment`, in the same way."""


FETCH: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("shard-size", int, "rows of the list in a shard [1000]"),
    ("resize", int, "shrink pictures to this shorter side in pixels, as JPEG [bytes as they are]"),
    ("min-caption-length", int, "drop shorter captions, in characters [0]"),
    ("min-size", int, "drop pictures with a shorter side of fewer pixels [1]"),
    ("max-aspect-ratio", float, "drop pictures whose sides differ by more than this factor [none]"),
    ("max-bytes", int, "of a download [16 MiB]"),
    ("max-pixels", int, "of a picture [89478485]"),
    ("threads", int, "downloads at a time in a task [32]"),
    ("rate", float, "requests a second, over the cluster; 0: no limit [0]"),
    ("host-rate", float, "requests a second to one host, over the cluster; 0: no limit [10]"),
    ("host-connections", int, "requests at a time to one host, over the cluster; 0: no limit [4]"),
    ("timeout", float, "seconds to connect, and to wait for the next bytes [10]"),
    ("deadline", float, "seconds for one attempt at a picture [30]"),
    ("retries", int, "further attempts after what may pass [2]"),
    ("backoff", float, "seconds before the second attempt, doubled for each further one [1]"),
    ("max-wait", float, "longest Retry-After that is waited for, seconds [60]"),
    ("redirects", int, "followed for a picture [5]"),
    ("user-agent", str, "what servers are told [Mozilla/5.0 (compatible; cleansweep)]"),
)
"""Kept beside `datasets.fetch.Wanted` and `datasets.download.Manners`; a test holds them together."""


def _overrides(rest: list[str], command: str) -> dict[str, str]:
    """`--a.b value` and `--a.b=value` pairs; anything else is a mistake."""
    accepted = command in ("plan", "run", "report", "claims", "poison", "evaluate", "analyse")
    found: dict[str, str] = {}
    words = iter(rest)
    for word in words:
        name, equals, value = word.partition("=")
        if accepted and not word.startswith("-"):
            takes = "takes one sweep" if command != "claims" else "takes its sweeps first"
            raise InputError(f"unknown argument {word!r}: {command} {takes}; see `cleansweep {command} --help`.")
        if not accepted or not name.startswith("--") or ("." not in name and name[2:] not in EXPERIMENT):
            raise InputError(f"unknown argument {word!r}; see `cleansweep --help`.")
        if not equals:
            try:
                value = next(words)
            except StopIteration:
                raise InputError(f"{name} needs a value, e.g. {name}=1.") from None
        found[name[2:]] = value
    return found


def _load(options: argparse.Namespace) -> tuple[Any, Any]:
    """The plan and the compute of the command line's sweep."""
    from orchestrator.loading import load_sweep

    sweep = load_sweep(options.sweep, options.overrides, options.miniature, options.seeds)
    return _planned(options.sweep, sweep), _compute(options, sweep)


def _planned(name: str, sweep: Any) -> Any:
    """The sweep's plan; an error says of which sweep it is."""
    from orchestrator.plan import make_plan

    try:
        return make_plan(sweep)
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _compute(options: argparse.Namespace, sweep: Any) -> Any:
    """The sweep's compute with the command line's flags on top."""
    given = {flag.replace("-", "_"): getattr(options, flag.replace("-", "_")) for flag, _, _ in COMPUTE}
    return dataclasses.replace(sweep.compute, **{name: value for name, value in given.items() if value is not None})


def _plan(options: argparse.Namespace) -> int:
    from orchestrator.show import plan_rows, plan_text

    rate = options.samples_per_second
    if rate is not None and not 0 < rate < float("inf"):
        raise InputError(f"--samples-per-second is {rate:g}; accepted: a number above 0.")
    plan, compute = _load(options)
    rows = plan_rows(plan, compute, options.samples_per_second)
    print(json.dumps(rows, indent=1) if options.json else plan_text(plan, compute, rows))
    return 0


def _run(options: argparse.Namespace) -> int:
    from orchestrator.report.tables import summary_text
    from orchestrator.run import run_sweep

    plan, compute = _load(options)
    if options.gate:
        sweep = dataclasses.replace(plan.sweep, gate=dataclasses.replace(plan.sweep.gate, action=options.gate))
        plan = dataclasses.replace(plan, sweep=sweep)
    study, report, code = run_sweep(plan, compute, lambda line: print(line, flush=True))
    print(summary_text(study, report, _ui_command(compute)), flush=True)
    return code


def _ui_command(compute: Any) -> str:
    return f"cleansweep ui --tracking-uri {compute.tracking_uri}" if compute.tracking_uri else f"cleansweep ui --store {compute.store}"


def _show(options: argparse.Namespace) -> int:
    from orchestrator.show import show

    return show(options.store, options.fingerprint, options.verify)


def _report(options: argparse.Namespace) -> int:
    from orchestrator.report.tables import summary_text
    from orchestrator.run import report_sweep

    plan, compute = _load(options)
    study, report = report_sweep(plan, compute)
    print(summary_text(study, report, _ui_command(compute)))
    return 0


def _claims(options: argparse.Namespace) -> int:
    from orchestrator.loading import load_sweep
    from orchestrator.report.claims_table import claims_text
    from orchestrator.run import judge_claims
    from orchestrator.store import Store

    plans = [_planned(name, load_sweep(name, options.overrides, options.miniature, options.seeds)) for name in options.sweep]
    found, page = judge_claims(plans, Store(options.store))
    print(f"{claims_text(found)}\n\nclaims: {page}")
    return 0


def _ui(options: argparse.Namespace) -> int:
    from orchestrator.run import open_ui

    return open_ui(options.store, options.tracking_uri, options.port)


def _poison(options: argparse.Namespace) -> int:
    from orchestrator.loading import load_sweep
    from orchestrator.run import write_poisoned
    from orchestrator.targets import POISONED, experiment_of

    sweep = load_sweep(options.sweep, None, options.miniature, options.seeds)
    experiment = experiment_of(sweep, options.overrides, POISONED)
    print(json.dumps(write_poisoned(experiment, _compute(options, sweep), Path(options.out).resolve()), indent=1))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from orchestrator.benchmark import CLASSIFICATION, PROBE, RETRIEVAL, evaluate_on, model_name, out_places, record, write_records
    from orchestrator.loading import load_sweep
    from orchestrator.run import evaluate_checkpoint
    from orchestrator.targets import GIVEN, OWN, experiments_of

    given = {flag: _named_paths(flag, getattr(options, flag.replace("-", "_"))) for flag in ("on", "retrieval", "linear-probe")}
    sweep = load_sweep(options.sweep, None, options.miniature, options.seeds)
    compute, checkpoint = _compute(options, sweep), options.checkpoint
    matters = GIVEN if any(given.values()) else OWN
    experiment = experiments_of(sweep, options.overrides, [checkpoint], matters, compute.store, _aside)[checkpoint]
    own = getattr(experiment.evaluate.data, "name", "") or "test"
    tasks = {"on": CLASSIFICATION, "linear-probe": PROBE, "retrieval": RETRIEVAL}
    expected = [(name, task) for flag, task in tasks.items() for name in given[flag]]
    if options.out:  # before anything is measured
        out_places(options.out, expected or [(own, CLASSIFICATION)], model_name(experiment))
    result: Any
    if any(given.values()):
        result = evaluate_on(experiment, compute, checkpoint, given["on"], given["retrieval"], given["linear-probe"], _aside)
        records = result
    else:
        result = evaluate_checkpoint(experiment, compute, checkpoint)
        records = [record(own, experiment, checkpoint, CLASSIFICATION, result)]
    if options.out:
        write_records(records, options.out)
    print(json.dumps(result, indent=1))
    return 0


def _named_paths(flag: str, given: list[str]) -> dict[str, str]:
    """NAME=PATH, each name once."""
    found: dict[str, str] = {}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path:
            raise InputError(f"--{flag} {text}: write NAME=PATH, e.g. --{flag} cifar10=/data/cifar10.")
        if name in found:
            raise InputError(f"--{flag} names {name} twice.")
        found[name] = path
    return found


def _analyse(options: argparse.Namespace) -> int:
    from orchestrator.analyse import analyse_checkpoints, analysis_folder
    from orchestrator.loading import load_sweep, narrowed
    from orchestrator.plan import make_plan
    from orchestrator.store import Store
    from orchestrator.targets import OWN, experiments_of

    sweep = load_sweep(options.sweep, None, options.miniature, options.seeds)
    compute = _compute(options, sweep)
    if options.out and options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out} is a file; give the name of a folder.")
    experiments = experiments_of(sweep, options.overrides, options.checkpoint, OWN, compute.store, _aside)
    out = options.out or analysis_folder(make_plan(narrowed(sweep, options.overrides)), Store(compute.store))
    print(json.dumps(analyse_checkpoints(experiments, compute, out), indent=1))
    return 0


def _aside(line: str) -> None:
    """Say a line beside the results."""
    print(line, file=sys.stderr)


def _ingest(options: argparse.Namespace) -> int:
    from datasets.ingest import ingest
    from orchestrator.meter import meter

    summary = ingest(
        options.source,
        options.out,
        shard_size=options.shard_size,
        image_key=options.image_key,
        caption_key=options.caption_key,
        delimiter=options.delimiter,
        captions=options.captions,
        classes=options.classes,
        label_key=options.label_key,
        resize=options.resize,
        progress=meter("ingest", "pictures", lambda line: print(line, file=sys.stderr)),
    )
    print(json.dumps(summary, indent=1))
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from datasets.download import Manners
    from datasets.fetch import Wanted
    from datasets.urllist import UrlList

    if options.tasks is not None and options.tasks < 1:
        raise InputError(f"fetch: --tasks is {options.tasks}; accepted is the number of shards at a time, at least 1.")
    if "://" in options.out:
        raise InputError(f"fetch: {options.out} is no folder; shards are written to a local disk or a shared file system.")
    given = {name: value for flag, _, _ in FETCH if (value := getattr(options, name := flag.replace("-", "_"))) is not None}
    given["allow_private"] = options.allow_private
    of = lambda cls: {field.name: given[field.name] for field in dataclasses.fields(cls) if field.name in given}
    wanted, manners = Wanted(**of(Wanted)), Manners(**of(Manners))
    out = Path(options.out).absolute()
    urls = UrlList(
        options.list,
        block_rows=wanted.shard_size,
        url_column=options.url_column,
        caption_column=options.caption_column,
        delimiter=options.delimiter,
    )
    from orchestrator import cluster
    from orchestrator.fetch import fetch_list

    try:
        summary = fetch_list(
            urls,
            out,
            wanted,
            manners,
            tasks=options.tasks,
            num_cpus=options.num_cpus,
            retry_failed=options.retry_failed,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )
    finally:
        cluster.shutdown()
    print(json.dumps(summary, indent=1))
    return 0 if summary["status"].get("success") else 1


def _doctor(options: argparse.Namespace) -> int:
    from orchestrator.doctor import doctor

    return doctor(options.store, options.tracking_uri)
