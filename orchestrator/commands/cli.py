"""The command line. Large packages are imported only when a command needs them, so that `--help` answers at once."""

import argparse
import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from datasets.errors import InputError
from orchestrator.commands.arguments import overrides_of, parser
from orchestrator.console.live import terminal
from orchestrator.console.log import log, printable

LONGEST = 2000
"""At most this many characters of an error message are printed."""


def run(arguments: list[str]) -> int:
    """Run one command. The exit code is 0 only if everything that was asked for is done."""
    taken = parser()
    try:
        for argument in arguments:
            if "\0" in argument:
                raise InputError(f"the argument {argument[:60]!r} holds a NUL character; accepted: text without one.")
        options, rest = taken.parse_known_args(arguments)
        if options.version:
            from orchestrator.commands.doctor import version_text

            print(version_text())
            return 0
        if options.command is None:
            taken.print_help()
            return 0
        if getattr(options, "store", None) == "":
            raise InputError("--store is empty; accepted: the folder for all results.")
        options.overrides = overrides_of(rest, options.command)
        if "orchestrator.stages.graph" in sys.modules:  # it was imported by an earlier command of this process
            sys.modules["orchestrator.stages.graph"].look_again()
        with terminal("stdout" if options.command in ("run", "matrix") else "stderr", getattr(options, "log_level", "info")):
            return HANDLERS[options.command](options)
    except InputError as error:
        _complain(error)
        return 2
    except KeyboardInterrupt:
        print("cleansweep: interrupted; the same command continues where this one stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:
        cause = getattr(error, "cause", error)  # Ray's combined exception lacks the original's fields
        if not isinstance(cause, OSError) or cause.errno is None:
            raise
        where = f": {cause.filename}" if cause.filename else ""
        _complain(f"{cause.strerror}{where}. What was finished is kept; run the same command again.")
        return 1
    except RuntimeError as error:
        if type(error).__name__ not in ("StageError", "TrackingError", "RayEnded"):
            raise
        _complain(error)
        return 1


def _complain(error: object) -> None:
    """Print an error."""
    text = printable(str(error))
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"
    with suppress(OSError):
        print(f"cleansweep: {text}", file=sys.stderr)


def _load(options: argparse.Namespace) -> tuple[Any, Any]:
    """The plan and the `Compute` of the sweep on the command line."""
    from orchestrator.sweep.loading import load_sweep

    sweep = load_sweep(options.sweep, options.overrides, options.miniature, options.seeds)
    return _planned(options.sweep, sweep), _compute(options, sweep)


def _planned(name: str, sweep: Any) -> Any:
    """The sweep's plan, after a check that its data exist."""
    from orchestrator.sweep.plan import make_plan

    with _says_where(name):
        plan = make_plan(sweep)
        plan.fingerprint  # noqa: B018 (reads what the data are known by, before anything is written)
        return plan


@contextmanager
def _says_where(name: str) -> Iterator[None]:
    """An InputError names the sweep and, if the study's data are missing, says where they should be."""
    try:
        yield
    except InputError as error:
        given = os.environ.get("CLEANSWEEP_DATA")
        folder = Path(given or "data").absolute()
        which, needed = "names it" if given else "is not set", name.startswith("sweeps.") and str(folder) in str(error)
        hint = f" At full size it reads data below {folder} (CLEANSWEEP_DATA {which}); --miniature needs none." if needed else ""
        raise InputError(f"{name}: {error}{hint}") from error


def _compute(options: argparse.Namespace, sweep: Any) -> Any:
    """The sweep's `Compute` with the flags of the command line."""
    return dataclasses.replace(sweep.compute, **_given(options, type(sweep.compute)))


def _given(options: argparse.Namespace, cls: type) -> dict[str, Any]:
    """The fields of the class that were given as flags. InputError names the flag whose value is invalid."""
    from datasets.component import coerce, hints

    found = {name: getattr(options, name, None) for name in hints(cls)}
    return {name: coerce(value, hints(cls)[name], f"--{name.replace('_', '-')}") for name, value in found.items() if value is not None}


def _plan(options: argparse.Namespace) -> int:
    from orchestrator.commands.show import plan_rows, plan_text
    from orchestrator.store import Store

    rate = options.samples_per_second
    if rate is not None and not 0 < rate < float("inf"):
        raise InputError(f"--samples-per-second is {rate:g}; accepted: a number above 0.")
    machine = None
    if options.machine:
        from orchestrator.commands.machine import Machine, machine_text

        machine = Machine.of(options.machine)
    plan, compute = _load(options)
    store = Store(compute.store).listed()
    rows = plan_rows(plan, compute, options.samples_per_second, store)
    print(json.dumps(rows, indent=1) if options.json else plan_text(plan, compute, rows, store))
    if machine is not None and not options.json:
        print("\n" + machine_text(plan, store, machine))
    return 0


def _run(options: argparse.Namespace) -> int:
    from orchestrator.report.tables import summary_text
    from orchestrator.running.driver import run_sweep

    plan, compute = _load(options)
    if options.gate:
        sweep = dataclasses.replace(plan.sweep, gate=dataclasses.replace(plan.sweep.gate, action=options.gate))
        plan = dataclasses.replace(plan, sweep=sweep)
    study, report, code = run_sweep(plan, compute)
    with suppress(BrokenPipeError):  # if stdout is closed
        print(summary_text(study, report, _ui_command(compute)), flush=True)
    return code


def _ui_command(compute: Any) -> str:
    which = ("--tracking-uri", compute.tracking_uri) if compute.tracking_uri else ("--store", compute.store)
    return shlex.join(["cleansweep", "ui", *which])


def _show(options: argparse.Namespace) -> int:
    from orchestrator.commands.show import show

    return show(options.store, options.fingerprint, options.verify)


def _report(options: argparse.Namespace) -> int:
    from orchestrator.report.tables import summary_text
    from orchestrator.running.driver import report_sweep

    plan, compute = _load(options)
    study, report = report_sweep(plan, compute)
    print(summary_text(study, report, _ui_command(compute)))
    return 0


def _table(options: argparse.Namespace) -> int:
    from orchestrator.report.paper import as_text
    from orchestrator.running.driver import read_study
    from orchestrator.store import Store

    plan, compute = _load(options)
    print(as_text(read_study(plan, Store(compute.store)), options.format, options.rule), end="")
    return 0


def _claims(options: argparse.Namespace) -> int:
    from orchestrator.report.claims_table import claims_text
    from orchestrator.running.driver import judge_claims
    from orchestrator.store import Store
    from orchestrator.sweep.loading import load_sweep

    plans = [_planned(name, load_sweep(name, options.overrides, options.miniature, options.seeds)) for name in options.sweep]
    found, page = judge_claims(plans, Store(options.store))
    print(f"{claims_text(found)}\n\nclaims: {page}")
    return 0


def _ui(options: argparse.Namespace) -> int:
    from orchestrator.running.driver import open_ui

    return open_ui(options.store, options.tracking_uri, options.port)


def _poison(options: argparse.Namespace) -> int:
    from orchestrator.running.driver import write_poisoned
    from orchestrator.sweep.loading import load_sweep
    from orchestrator.sweep.targets import POISONED, experiment_of

    sweep = load_sweep(options.sweep, None, options.miniature, options.seeds)
    experiment = experiment_of(sweep, options.overrides, POISONED)
    print(json.dumps(write_poisoned(experiment, _compute(options, sweep), Path(options.out).resolve()), indent=1))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from orchestrator.commands.evaluate import evaluate
    from orchestrator.sweep.loading import load_sweep

    sweep = load_sweep(options.sweep, None, options.miniature, options.seeds)
    return evaluate(options, sweep, _compute(options, sweep))


def _export(options: argparse.Namespace) -> int:
    from orchestrator.commands.export import export_checkpoint
    from orchestrator.sweep.loading import load_sweep
    from orchestrator.sweep.targets import OWN, experiments_of

    sweep = load_sweep(options.sweep, None, options.miniature, options.seeds)
    compute, checkpoint = _compute(options, sweep), options.checkpoint
    experiment = experiments_of(sweep, options.overrides, [checkpoint], OWN, compute.store)[checkpoint]
    print(json.dumps(export_checkpoint(experiment, compute, checkpoint, options.out.absolute(), options.license), indent=1))
    return 0


def _export_best(options: argparse.Namespace) -> int:
    from orchestrator.commands.export import best, export_checkpoint
    from orchestrator.running.driver import read_study
    from orchestrator.store import Store
    from orchestrator.sweep.targets import OWN, experiments_of

    plan, compute = _load(options)
    store = Store(compute.store)
    choice, why = best(read_study(plan, store), options.rule, options.pretraining, options.method)
    checkpoint = str(store.root / choice.checkpoint)
    experiment = experiments_of(plan.sweep, {}, [checkpoint], OWN, compute.store)[checkpoint]
    assert choice.point is not None
    told = export_checkpoint(experiment, compute, checkpoint, options.out.absolute(), options.license, why, choice.point.metrics)
    print(json.dumps(told, indent=1))
    return 0


def _analyse(options: argparse.Namespace) -> int:
    from orchestrator.commands.analyse import analyse_checkpoints, analysis_folder
    from orchestrator.store import Store
    from orchestrator.sweep.loading import load_sweep, narrowed
    from orchestrator.sweep.plan import make_plan
    from orchestrator.sweep.targets import OWN, experiments_of

    sweep = load_sweep(options.sweep, None, options.miniature, options.seeds)
    compute = _compute(options, sweep)
    if options.out and options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out} is a file; give the name of a folder.")
    experiments = experiments_of(sweep, options.overrides, options.checkpoint, OWN, compute.store)
    out = options.out or analysis_folder(make_plan(narrowed(sweep, options.overrides)), Store(compute.store))
    print(json.dumps(analyse_checkpoints(experiments, compute, out), indent=1))
    return 0


def _audit(options: argparse.Namespace) -> int:
    from orchestrator.commands.audit import audit

    return audit(*_load(options), options)


def _ingest(options: argparse.Namespace) -> int:
    from datasets.acquire.ingest import ingest
    from orchestrator.console.progress import meter

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
        progress=meter("ingest", "pictures"),
    )
    print(json.dumps(summary, indent=1))
    out, dropped = Path(options.out).absolute(), sum(summary["dropped"].values())
    others, without = summary.get("passed_over"), summary.get("without_class")
    parts = [f"{summary['n']} pairs are in {out}, in {len(summary['shards'])} shards"]
    parts += [f"{without} without a label, beside the class folders"] if without else []
    parts += [f"{dropped} are left out"] if dropped else []
    parts += [f"{others} other files are passed over"] if others else []
    listed = f", listed in {out / 'dropped.csv'}" if dropped or others else ""
    log.info(f"{'; '.join(parts)}{listed}")
    return 0


def _fetch(options: argparse.Namespace) -> int:
    from datasets.acquire.fetch import Wanted
    from datasets.acquire.manners import Manners
    from datasets.acquire.urlparquet import open_list

    if options.tasks is not None and options.tasks < 1:
        raise InputError(f"fetch: --tasks is {options.tasks}; accepted is the number of shards at a time, at least 1.")
    if "://" in options.out:
        raise InputError(f"fetch: {options.out} is no folder; shards are written to a local disk or a shared file system.")
    wanted, manners = Wanted(**_given(options, Wanted)), Manners(**_given(options, Manners))
    out = Path(options.out).absolute()
    columns = {name: getattr(options, name) for name in ("url_column", "caption_column", "delimiter")}
    urls = open_list(options.list, block_rows=wanted.shard_size, **columns)
    log.info(f"fetch  {len(urls)} rows of {options.list}: {urls.taken}")
    from orchestrator.cluster import session
    from orchestrator.commands.fetch import fetch_list

    try:
        how = {name: getattr(options, name) for name in ("tasks", "num_cpus", "retry_failed")}
        summary = fetch_list(urls, out, wanted, manners, **how)
    finally:
        session.shutdown()
    print(json.dumps(summary, indent=1))
    return 0 if summary["status"].get("success") else 1


def _matrix(options: argparse.Namespace) -> int:
    from orchestrator.commands.matrix import fill
    from orchestrator.sweep.matrix import load_matrix

    matrix = load_matrix(options.sweep, options.overrides, options.miniature, options.seeds)
    with _says_where(options.sweep):
        return fill(options, matrix, _compute(options, matrix))


def _leaderboard(options: argparse.Namespace) -> int:
    from orchestrator.commands.matrix import leaderboard

    return leaderboard(options.folder, options.format, options.rule, options.out, options.title)


def _protect(options: argparse.Namespace) -> int:
    from orchestrator.commands.protect import protect

    return protect(options)


def _doctor(options: argparse.Namespace) -> int:
    from orchestrator.commands.doctor import doctor

    return doctor(options.store, options.tracking_uri)


HANDLERS: dict[str, Callable[[argparse.Namespace], int]] = {
    "plan": _plan,
    "run": _run,
    "matrix": _matrix,
    "leaderboard": _leaderboard,
    "show": _show,
    "report": _report,
    "table": _table,
    "export-best": _export_best,
    "export": _export,
    "claims": _claims,
    "ui": _ui,
    "poison": _poison,
    "evaluate": _evaluate,
    "analyse": _analyse,
    "audit": _audit,
    "ingest": _ingest,
    "fetch": _fetch,
    "protect": _protect,
    "doctor": _doctor,
}
