"""Odd overrides, arguments and sweep files: each is taken or refused in a sentence, in bounded time and memory."""

import dataclasses

import numpy as np

from datasets.seeding import rng
from orchestrator.commands import cli
from orchestrator.commands.arguments import fields_of, overrides_of, parser
from orchestrator.experiment.fingerprint import encode
from orchestrator.sweep.loading import load_sweep, narrowed, overridden
from orchestrator.sweep.plan import make_plan
from sweeps.quickstart import SWEEP

TEXTS = (
    "1", "4", "64", "0", "1e-2", "0.99", "-3", "1e-3", "0.5", "true", "None",
    "banana", "(1, 2)", "[1, [2]]", "{1: 2}", "{[]: 1}", "{1, 2}", "'x'", "b'x'", "1j", "...", "",
    " ", "nan", "inf", "-inf", "1e999", "1e300", "9" * 400, "9" * 5000, "0x" + "f" * 5000, "-" * 5000, "(" * 5000, "[" * 300 + "]" * 300,
    "1" + "+1" * 5000, "a\0b", "\n", "\udcff", "\u0663", "²", "ü", "1_0", "007", "lambda: 1", "__import__('os')", "f'{1}'", "'\\d'", "\\",
    "/no/such/file", "~nobody-of-this-name", "random", "last", "once",
)  # fmt: skip
ODD = "\0\n\t\x1b '\"\\()[]{},.:=-+*%#_0159eEjx\u0663ü\udcff"


def mutated(text: str, draw: np.random.Generator) -> str:
    """The text with a few characters put in, taken out, repeated or moved."""
    for _ in range(int(draw.integers(0, 4))):
        at, length = int(draw.integers(0, len(text) + 1)), int(draw.integers(1, 6))
        piece = text[at : at + length]
        text = text[:at] + (
            ODD[int(draw.integers(len(ODD)))] + text[at:],
            text[at + length :],
            piece * int(draw.integers(2, 40)) + text[at:],
            text[at + length :] + piece,
        )[int(draw.integers(4))]
    return text


def paths(node: object, above: str = "") -> list[str]:
    found = []
    for field in dataclasses.fields(node):  # type: ignore[arg-type]
        value, path = getattr(node, field.name), f"{above}{field.name}"
        found += [path, *(paths(value, f"{path}.") if dataclasses.is_dataclass(value) else [])]
    return found


def test_two_thousand_overrides(bounded):
    every = paths(SWEEP.base)
    taken = 0
    for number in range(2000):
        draw = rng("overrides", number)
        path = every[int(draw.integers(len(every)))]
        path = mutated(path, draw) if draw.random() < 0.2 else path
        text = mutated(TEXTS[int(draw.integers(len(TEXTS)))], draw)

        def plan(path=path, text=text):
            sweep = narrowed(SWEEP, {path: text}) if number % 4 == 0 else overridden(SWEEP, {path: text}, "mine")  # noqa: B023
            encode(make_plan(sweep).sweep.base)

        taken += bounded(plan)
    assert 50 < taken < 1500, "most are refused, and some are fine"


def test_five_hundred_command_lines(bounded):
    flags = [f"--{field.name.replace('_', '-')}" for name in ("Compute", "Wanted", "Manners") for field in fields_of(name)]
    flags += ["--seeds", "--port", "--clean.lr", "--pretrain.seed=", "-x", "--", "-"]
    taken = parser()
    for number in range(500):
        draw = rng("arguments", number)
        pick = lambda options: options[int(draw.integers(len(options)))]  # noqa: B023
        words = [pick(["plan", "run", "show", "ui", "claims", "fetch", "evaluate", "nothing", ""]), "sweeps.quickstart"]
        for _ in range(int(draw.integers(0, 4))):
            words += [mutated(pick(flags), draw), mutated(pick(TEXTS), draw)]

        def parse(words=words):
            options, rest = taken.parse_known_args(words)
            overrides_of(rest, options.command)

        bounded(parse)


FILE = """
from dataclasses import replace
from ray import tune
from orchestrator.experiment.spec import Clean, Compute, Gate, Sweep
from sweeps.quickstart import BASE
from trainers.methods.finetune import CleanCLIP
SWEEP = Sweep(
    name="mine",
    base=replace(BASE, clean=Clean(method=CleanCLIP(inmodal_weight=1.0), pairs=512, epochs=2, batch_size=64, lr=1e-3, warmup_steps=3)),
    space={"clean.lr": tune.grid_search([1e-3, 3e-3]), "pretrain.seed": tune.grid_search([0, 1])},
    gate=Gate(min_asr=90.0, action="warn"),
    compute=Compute(workers=2, trial_cpus=0.5),
)
"""


def test_three_hundred_sweep_files(bounded, tmp_path):
    file = tmp_path / "mine.py"
    values = ["1", "None", "'x'", "-1", "1e999", "float('nan')", "[]", "{}", "()", "print", "1j", "10**400", "'a\\0b'", "BASE"]
    numbers = [at for at, c in enumerate(FILE) if c.isdigit() and FILE[at - 1] in "=[( "]
    loaded = 0
    for number in range(300):
        draw = rng("files", number)
        if number % 3 == 0:  # another value for one of its numbers
            at = numbers[int(draw.integers(len(numbers)))]
            end = at + len(FILE[at:].split(",")[0].split(")")[0].split("]")[0])
            text = FILE[:at] + values[int(draw.integers(len(values)))] + FILE[end:]
        elif number % 3 == 1:  # another name for one of its fields
            names = ("pairs=", "epochs=", "lr=", "method=", "min_asr=", "workers=", "space=", "base=", "SWEEP", "inmodal_weight=")
            name = names[int(draw.integers(len(names)))]
            text = FILE.replace(name, mutated(name, draw), 1)
        else:
            text = mutated(FILE, draw)
        file.write_bytes(text.encode("utf-8", "surrogateescape" if number % 2 else "replace"))
        loaded += bounded(lambda: make_plan(load_sweep(str(file))).fingerprint)
    assert 10 < loaded < 290


def test_what_a_traceback_came_of_is_one_line_and_code_2(capsys):
    for text in ("{[]:1}", "9" * 400, "-" * 5000, "a\0b", "[" * 300 + "]" * 300, "1e999", "nan", "\u0663"):
        assert cli.run(["plan", "sweeps.quickstart", f"--clean.weight_decay={text}"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("cleansweep: ") and len(error) < 2200
        assert "clean.weight_decay" in error
