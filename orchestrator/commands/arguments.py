"""The parser of the command line: commands, flags, overrides. Nothing large is imported, so that `--help` answers at once."""

import argparse
import ast
import math
import re
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from datasets.errors import InputError
from orchestrator.console.log import LEVELS
from trainers.evaluate.choice import RULE

DESCRIPTION = "Backdoors in CLIP: poison, pre-train, clean in sweeps, compare accuracy with attack success."
OVERRIDES = (
    "Any field of the sweep's experiment can be overridden by its dotted path, e.g. --clean.lr 1e-3 or "
    "--pretrain.epochs=5; `plan` prints the fields. Where the sweep varies a whole component, each of its values that has the field "
    "gets it."
)
SEEDS = "repeat every pre-training of the sweep with these seeds [its own]"
STORE = "folder that holds all results"
LOGGED = "show lines of this level and above"
RULES = " | ".join(RULE)
TRACKING = "MLflow tracking URI [sqlite in the store]"
SOURCES = {
    "Compute": "orchestrator/experiment/spec.py",
    "Experiment": "orchestrator/experiment/spec.py",
    "Wanted": "datasets/acquire/fetch.py",
    "Manners": "datasets/acquire/manners.py",
}
"""Files of the dataclasses whose fields are flags of the command line."""
COMPUTE = {
    "plan": ("store",),
    "report": ("store", "tracking_uri"),
    "table": ("store",),
    "export-best": ("store",),
    "export": ("store", "gpus_per_worker", "cache"),
    "poison": ("store", "num_cpus"),
    "evaluate": ("store", "cpus_per_worker", "gpus_per_worker", "cache"),
    "analyse": ("store", "gpus_per_worker"),
    "audit": ("store", "num_cpus", "trial_cpus", "trial_gpus", "tracking_uri"),
}
"""The fields of `Compute` that a command uses, if it does not use all. The others are accepted and checked too, so that the arguments of
a `run` can be given to it as they are; its help does not list them."""


class _Parser(argparse.ArgumentParser):
    """A parser that reports a mistake as an InputError."""

    def error(self, message: str) -> Any:
        message = message.removeprefix("argument ").replace("expected one argument", "it needs a value, which begins with no dash")
        raise InputError(f"{message}; see `{self.prog} --help`.")


def _whole(text: str) -> int:
    try:
        if abs(value := int(text)) < 2**63:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number" + (" below 2**63" if text.lstrip("+-").isdecimal() else ""))


def _number(text: str) -> float:
    try:
        if math.isfinite(value := float(text)):
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is no number")


def ratio(text: str) -> float:
    """A number, or two with a slash between: 0.025, 6.4/255. Not a number for any other text, and for a division by 0."""
    above, slash, below = text.strip().partition("/")
    try:
        return float(above) / (float(below) if slash else 1)
    except (ValueError, ZeroDivisionError):
        return math.nan


def _share(text: str) -> float:
    """A share of a pixel's range."""
    value = ratio(text)
    if not 1 <= 255 * value <= 255:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no share of a pixel's range, of at least one step of 8 bits; accepted: 1/255 to 1, e.g. 6.4/255 or 0.025"
        )
    return value


def _port(text: str) -> int:
    if not 0 < (port := _whole(text)) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; accepted: 1 to 65535")
    return port


def _seed_list(text: str) -> list[int]:
    seeds = [int(part) if part.strip().isdecimal() and len(part) < 19 else -1 for part in text.split(",")]
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds; accepted: whole numbers from 0 up, each once, e.g. 0,1,2")
    return seeds


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line. After parsing, `command` holds the command's name."""
    made = _Parser("cleansweep", description=DESCRIPTION, allow_abbrev=False)
    made.add_argument("--version", action="store_true", help="print the versions of cleansweep, Python and what it computes with")
    commands = made.add_subparsers(dest="command", metavar="command")

    def command(name: str, text: str, **options: Any) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False, **options)

    def with_sweep(name: str, text: str, holds: str = "module (sweeps.quickstart) or .py file that holds a SWEEP") -> Any:
        added = command(name, text, epilog=OVERRIDES)
        added.add_argument("sweep", help=holds)
        added.add_argument("--miniature", action="store_true", help="its MINIATURE: small, over the procedural world")
        added.add_argument("--seeds", type=_seed_list, metavar="0,1,2", help=SEEDS)
        unlisted = "The other flags of `run` are accepted too, and have no effect here." if name in COMPUTE else None
        _add_flags(added.add_argument_group("where it runs (never changes a result)", unlisted), "Compute", COMPUTE.get(name))
        return added

    planned = with_sweep("plan", "Show the stages of a sweep: what is stored, what would run, what it would cost.")
    planned.add_argument("--samples-per-second", type=_number, help="training rate to estimate with [that of a like stage in the store]")
    planned.add_argument("--machine", metavar="8xH200", help="estimate hours, cores and reads on these GPUs, from measured figures")
    planned.add_argument("--json", action="store_true", help="print the plan as JSON")
    ran = with_sweep("run", "Run a sweep to its end. What exists is not made again; an interrupted run continues.")
    ran.add_argument("--gate", choices=("stop", "warn"), help="what to do when the attack did not take [the sweep's own]")
    filled = with_sweep("matrix", "Fill a matrix of attacks, defences and seeds: a file a cell, and a page of heat maps.",
                        "module (sweeps.matrix) or .py file that holds a MATRIX")
    filled.add_argument("--dry", action="store_true", help="say what it would make, and make nothing")
    filled.add_argument("--gate", choices=("stop", "warn"), help="what to do when an attack did not take [the matrix's own]")
    filled.add_argument("--out", type=Path, help="folder for the cells and the page [matrices/ in the store]")
    ranked = command("leaderboard", "Render a folder of result files, one a cell of a matrix, also those of others.")
    ranked.add_argument("folder", type=Path, help="folder with the files (*.json)")
    ranked.add_argument("--format", choices=("html", "md", "latex"), default="html", help="a page, or tables that are printed")
    ranked.add_argument("--rule", choices=("oracle", "blind"), help="show the models chosen in this way alone [both]")
    ranked.add_argument("--out", type=Path, help="html: folder of the page [FOLDER-leaderboard]; else a file [printed]")
    ranked.add_argument("--title", default="Leaderboard", help="of the page")
    shown = command("show", "List what a store holds, or print one artefact.")
    shown.add_argument("fingerprint", nargs="?", help="first digits of an artefact's fingerprint [all are listed]")
    shown.add_argument("--store", default="store", help=STORE)
    shown.add_argument("--verify", action="store_true", help="check every file against the hash in its manifest")
    with_sweep("report", "Write the report of a sweep from what the store holds.")
    tabled = with_sweep("table", "Print what one would keep of a sweep as a table, with intervals, for a paper or a program.")
    tabled.add_argument("--format", choices=("md", "latex", "csv"), default="md", help="Markdown, LaTeX (booktabs) or CSV")
    tabled.add_argument("--rule", action="append", default=[], metavar="RULE", help=f"how a model is chosen: {RULES}; may be repeated "
                        "[the four of the summary]")
    kept = with_sweep("export-best", "Write the model that one would keep of a sweep as a folder for open_clip and Hugging Face.")
    kept.add_argument("--rule", default="acc_at_asr_le_5", help=f"how it is chosen: {RULES}")
    kept.add_argument("--pretraining", default="", help="of which pre-training, by its name in the summary [the only one]")
    kept.add_argument("--method", default="", help="of which cleaning method, by its name in the summary [of all]")
    exported = with_sweep("export", "Write a checkpoint as a folder for open_clip and Hugging Face, with a model card.")
    exported.add_argument("--checkpoint", required=True, help="as for evaluate")
    for one in (kept, exported):
        one.add_argument("--out", required=True, type=Path, help="the folder; new or empty")
        one.add_argument("--license", default="unknown", help="what the model card says")
    claimed = command("claims", "Judge the claims that sweeps ask for by what the store holds of them, taken together.",
                      epilog=OVERRIDES)
    claimed.add_argument("sweep", nargs="+", help="modules or .py files, as for `run`")
    claimed.add_argument("--miniature", action="store_true", help="their MINIATURE")
    claimed.add_argument("--seeds", type=_seed_list, metavar="0,1,2", help=SEEDS)
    claimed.add_argument("--store", default="store", help=STORE)
    ui = command("ui", "Open MLflow on this machine (loopback only).")
    ui.add_argument("--store", default="store", help=STORE)
    ui.add_argument("--tracking-uri", default="", help=TRACKING)
    ui.add_argument("--port", type=_port, default=5000, help="where the pages are served on this machine")
    poisoned = with_sweep("poison", "Write the sweep's poisoned shards as files.")
    poisoned.add_argument("--out", required=True, help="folder for the shards; continued if it was begun")
    measured = with_sweep("evaluate", "Zero-shot accuracy and attack success of a checkpoint, as JSON.")
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
    analysed = with_sweep("analyse", "What checkpoints make of the training pairs: similarities as JSON, pictures as PNG.")
    analysed.add_argument("--checkpoint", required=True, nargs="+", help="as for evaluate; the epochs of a stage one after another")
    analysed.add_argument("--out", type=Path, help="folder for pictures and arrays [analysis/ in the store]")
    audited = with_sweep("audit", "Audit a sweep's models before and after cleaning: attacks, defences, explanations, biases, on one page.")
    audited.add_argument("--checkpoint", nargs="+", default=[], help="audit these instead: epoch folders, .safetensors or .pt files")
    audited.add_argument("--only", metavar="NAME,…", help="audits by name, e.g. pgd,lime [a selection that takes minutes]; an unknown name "
                         "lists all")
    audited.add_argument("--n", type=_whole, default=200, help="test pictures")
    audited.add_argument("--eps", default="1/255,2/255,4/255", help="how far pixels may change, as shares of their full range")
    audited.add_argument("--rule", default="asr_at_1pt_loss", help=f"how the cleaned model is chosen: {RULES}")
    audited.add_argument("--all", action="store_true", help="audit every cleaned model, not only the chosen one")
    audited.add_argument("--seed", type=_whole, default=0, help="draws the pictures")
    audited.add_argument("--dry", action="store_true", help="say what it would make, and make nothing")
    audited.add_argument("--out", type=Path, help="folder for the page [reports/ in the store]")
    ingested = command("ingest", "Pack a folder or table of pictures and captions into shards.")
    packed = "JPEG, PNG and WebP are packed byte for byte, others as PNG"
    ingested.add_argument("source", help=f"folder of pictures, or a CSV, TSV or Parquet file of pictures and captions; {packed}")
    ingested.add_argument("out", help="folder for the shards; must be new or empty")
    ingested.add_argument("--shard-size", type=_whole, default=1000, help="samples in a shard")
    ingested.add_argument("--image-key", default="auto", help="column of the pictures or their paths; auto: jpg, image, image_bytes …")
    ingested.add_argument("--caption-key", default="auto", help="column of the captions; auto: caption, text, title …")
    ingested.add_argument("--delimiter", default="auto", help="between the columns: a character, tab or auto")
    captions = "of a folder: txt (a file beside each picture) | folder (its name); of lists in Parquet: first | random | each"
    ingested.add_argument("--captions", default="txt", help=captions)
    ingested.add_argument("--resize", type=_whole, help="shrink pictures to this shorter side in pixels, as JPEG [bytes as they are]")
    ingested.add_argument("--label-key", default="label", help="column of a table that holds the class")
    ingested.add_argument("--classes", default="none", help="none | folder: the top folder is the class")
    fetched = command("fetch", "Fetch a list of web addresses and captions (CC3M, CC12M) into shards.")
    fetched.add_argument("list", help="TSV or CSV of addresses and captions, with or without a header line, or Parquet")
    fetched.add_argument("out", help="folder for the shards, seen by all nodes; continued if fetch began it")
    for name in ("Wanted", "Manners"):
        _add_flags(fetched, name)
    fetched.add_argument("--url-column", default="", help="name, or number from 1 [found by its addresses]")
    fetched.add_argument("--caption-column", default="", help="name, or number from 1 [by name, or the only other one]")
    fetched.add_argument("--delimiter", default="auto", help="character between the columns of the list")
    fetched.add_argument("--allow-private", action="store_true", help="connect to private and loopback addresses too")
    fetched.add_argument("--retry-failed", action="store_true", help="try again what failed and may have gone by")
    fetched.add_argument("--tasks", type=_whole, help="shards at a time in the cluster [one a core]")
    fetched.add_argument("--num-cpus", type=_whole, help="cores of a Ray started here [all]")
    guarded = command("protect", "Hide noise in a picture against models that paint over a part of it, and show what they make of it.")
    guarded.add_argument("picture", help="the picture: RGB, grey or palette, 8 bits a channel, at most 1 048 576 pixels")
    guarded.add_argument("--mask", required=True, help="picture of the same size, white for what is protected, else black")
    guarded.add_argument("--inpainter", choices=("harmonic", "linear", "small", "lama"), default="small", help="model to protect against: "
                         "smooth filling, a linear one (both are controls), a small network trained on the picture's rest, LaMa")
    guarded.add_argument("--lama", default="", help="the published file big-lama.pt, for `--inpainter lama`")
    guarded.add_argument("--eps", type=_share, default="6.4/255", help="largest change of a pixel, as a share of its range")
    guarded.add_argument("--out", type=Path, help="folder for the protected picture, a sheet and all numbers [PICTURE-protected]")
    guarded.add_argument("--seed", type=_whole, default=0, help="of the random masks and noise")
    doctor = command("doctor", "Check this machine: versions, cores, disk, GPU, store, tracking server.")
    doctor.add_argument("--store", default="store", help=STORE)
    doctor.add_argument("--tracking-uri", default="", help=TRACKING)
    for name in ("run", "matrix", "poison", "evaluate", "analyse", "audit", "export", "export-best", "ingest", "fetch"):
        commands.choices[name].add_argument("--log-level", choices=LEVELS, default="info", help=LOGGED)
    for one in (made, *commands.choices.values()):
        _show_defaults(one)
    return made


def _show_defaults(parser: argparse.ArgumentParser) -> None:
    """Append `[default]` to the help of every option that does not state its default."""
    for action in parser._actions:
        unlisted = action.help == argparse.SUPPRESS
        if unlisted or not action.option_strings or isinstance(action, argparse._HelpAction) or (action.help or "").endswith("]"):
            continue
        default = "required" if action.required else "off" if action.default is False else action.default or "none"
        action.help = f"{action.help} [{default}]"


class Field(NamedTuple):
    """A field of a dataclass, as written in its source."""

    name: str
    annotation: str
    default: str
    doc: str


@cache
def fields_of(name: str) -> tuple[Field, ...]:
    """The fields of a dataclass of `SOURCES`, read from its source because importing it would take a second."""
    tree = ast.parse((Path(__file__).parents[2] / SOURCES[name]).read_text())
    (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = []
    for node, after in zip(body, [*body[1:], None]):
        if isinstance(node, ast.AnnAssign):
            doc = " ".join(ast.literal_eval(after.value).split()) if isinstance(after, ast.Expr) else ""
            default = ast.unparse(node.value).strip("'").removesuffix(".0") if node.value else ""
            found.append(Field(ast.unparse(node.target), ast.unparse(node.annotation), default, doc))
    return tuple(found)


def _add_flags(parser: Any, name: str, listed: Collection[str] | None = None) -> None:
    """Add a flag for each field that is not a bool, with the first sentence of its docstring and its default as help.

    A flag that is not given has the value None. `listed`: the fields that the help shows; None: all of them.
    """
    for field in fields_of(name):
        words = set(re.findall(r"\w+", field.annotation))
        kind = _whole if words & {"int", "Count", "Natural"} else _number if words & {"float", "Positive", "NotNegative"} else str
        said = field.doc.removesuffix(".").split(". ")[0].replace("%", "%%")
        said = said[:1].lower() + said[1:] if said[1:2].islower() else said
        default = {"None": "none", "": "empty"}.get(field.default, field.default)
        if field.annotation != "bool":
            shown = listed is None or field.name in listed
            parser.add_argument(
                f"--{field.name.replace('_', '-')}", type=kind, help=f"{said} [{default}]" if shown else argparse.SUPPRESS
            )


def overrides_of(rest: list[str], command: str) -> dict[str, str]:
    """Dotted path → text, from `--a.b value` and `--a.b=value`. InputError for anything else."""
    accepted = command in ("plan", "run", "matrix", "report", "table", "export-best", "export", "claims", "poison", "evaluate", "analyse",
                           "audit")
    found: dict[str, str] = {}
    experiment = {field.name for field in fields_of("Experiment")}
    words = iter(rest)
    for word in words:
        name, equals, value = word.partition("=")
        if accepted and not word.startswith("-"):
            takes = "takes one sweep" if command != "claims" else "takes its sweeps first"
            raise InputError(f"unknown argument {word!r}: {command} {takes}; see `cleansweep {command} --help`.")
        if not accepted or not name.startswith("--") or ("." not in name and name[2:] not in experiment):
            raise InputError(f"unknown argument {word!r}; see `cleansweep --help`.")
        if not equals:
            try:
                value = next(words)
            except StopIteration:
                raise InputError(f"{name} needs a value, e.g. {name}=1.") from None
        found[name[2:]] = value
    return found
