"""No damaged byte is taken for a result: every file of a store is broken in turn, and the same command run again.

Accepted is a refusal that names the file, or the result that the whole store gives; nothing else.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from ray import tune

from datasets.attack.poison import Poison
from datasets.images.view import Views
from datasets.synthetic import tiny
from datasets.triggers.patch import Patch
from orchestrator.experiment.spec import Clean, Data, Evaluate, Experiment, Gate, Pretrain, Sweep
from orchestrator.stages.graph import stages
from orchestrator.store import MANIFEST, METRICS, Store
from tests.inprocess import run_here
from trainers import checkpoint
from trainers.methods.finetune import MMCLFineTune
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCL

WORLD = tiny(train=48, test=20)
BASE = Experiment(
    data=Data(source=WORLD, subset=40), views=Views(size=32),
    poison=Poison(trigger=Patch(pattern="saturated", size=6, cell=2, location="bottom_right"), target="banana", count=4),
    pretrain=Pretrain(
        model=TinyCLIP(vision_width=8, embed_dim=16, text_width=8), objective=MMCL(), epochs=3, batch_size=16, lr=3e-3, warmup_steps=2
    ),
    clean=Clean(method=MMCLFineTune(), pairs=16, epochs=1, batch_size=8, lr=1e-3, warmup_steps=1),
    evaluate=Evaluate(data=WORLD),
)  # fmt: skip
GATE = Gate(min_asr=0.0, action="warn")
SWEEP = Sweep(name="flips", base=BASE, space={"clean.lr": tune.grid_search([1e-3])}, gate=GATE)
PRETRAINING = Sweep(name="pre-training", base=replace(BASE, clean=None), gate=GATE)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of a whole run."""
    store = tmp_path_factory.mktemp("finished")
    code, said, _ = run_here(SWEEP, store)
    assert code == 0, said
    return store


@pytest.fixture(scope="module")
def to_clean(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same before its cleanings."""
    store = tmp_path_factory.mktemp("to_clean") / "store"
    shutil.copytree(finished, store)
    for kind in ("clean", "sweep"):
        shutil.rmtree(store / kind)
    return store


@pytest.fixture(scope="module")
def training(to_clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a pre-training that was killed in its third epoch."""
    store = tmp_path_factory.mktemp("training") / "store"
    shutil.copytree(to_clean, store)
    shutil.rmtree(store / "pretrain")
    save, saved = checkpoint.save, []

    def killed(*arguments, **named):
        if len(saved) == 2:
            raise KeyboardInterrupt
        saved.append(save(*arguments, **named))
        return saved[-1]

    with patch("trainers.checkpoint.save", killed), pytest.raises(KeyboardInterrupt):
        run_here(PRETRAINING, store)
    assert len(saved) == 2 and (saved[-1] / checkpoint.STATE).exists()
    return store


def outcome(store: Path) -> dict[str, object]:
    """What the stages of a store hold that is no time: hashes of their files, and their metrics."""
    found: dict[str, object] = {}
    for artefact in Store(store).all():
        for name, digest in artefact.manifest["files"].items():
            if name == METRICS:
                lines = [json.loads(line) for line in (artefact.folder / name).read_text().splitlines()]
                found[f"{artefact.fingerprint} {name}"] = [
                    (line["epoch"], {k: v for k, v in line["metrics"].items() if "second" not in k}) for line in lines
                ]
            elif not name.endswith(checkpoint.META):
                found[f"{artefact.fingerprint} {name}"] = digest
    return found


def flip(at: float) -> Callable[[Path], None]:
    """Turns one bit at that share of a file."""

    def harm(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[min(int(at * len(data)), len(data) - 1)] ^= 1 << int(at * 997) % 8
        path.write_bytes(data)

    return harm


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def files_of(store: Path) -> list[Path]:
    """Every file of a stage, as paths from the store, but for locks and the bar of progress, of which nothing is computed."""
    found = [path.relative_to(store) for kind in KINDS for path in sorted((store / kind).rglob("*")) if path.is_file()]
    return [path for path in found if path.name != "progress.json" and not path.name.startswith(".lock")]


def harms(store: Path, file: Path, places: int) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Ways to break a file: it is lost, or cut, and flipped at places drawn from its name, more of them in a large one."""
    draw = random.Random(str(file.name))
    size = (store / file).stat().st_size
    yield ("cut", cut) if size and draw.random() < 0.5 else ("lost", Path.unlink)
    for _ in range(places if size > 4096 else min(size, 1)):
        at = draw.random()
        yield f"flipped at {at:.3f}", flip(at)


def linked(source: Path, store: Path) -> Path:
    """A copy of the store that shares the bytes of finished stages with it; nothing writes into those."""
    shutil.copytree(source, store, copy_function=os.link)
    for path in store.glob("*/.*/**/*"):  # of unfinished stages
        if path.is_file():
            unlink(path)
    return store


def unlink(path: Path) -> None:
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


def broken_one_by_one(
    sweep: Sweep, source: Path, files: list[Path], expected: dict[str, object], folder: Path, places: int = 1
) -> dict[str, set[str]]:
    """Break each file in each way and run again; for each file what came of it: "refused" by its name, or the "same" result."""
    ended: dict[str, set[str]] = {}
    wrong = []
    for file in files:
        for number, (how, harm) in enumerate(harms(source, file, places)):
            store = linked(source, folder / f"{files.index(file)}-{number}")
            unlink(store / file)
            harm(store / file)
            code, said, _ = run_here(sweep, store)
            if code in (1, 2) and str(store / file) in said:
                ended.setdefault(str(file), set()).add("refused")
            elif code == 0 and outcome(store) == but_listed(expected, file):
                ended.setdefault(str(file), set()).add("same")
            else:
                wrong.append(f"{file} {how}: exit code {code}, {said or 'another result'}")
            shutil.rmtree(store)
    assert not wrong, "\n".join(wrong)
    return ended


def but_listed(expected: dict[str, object], broken: Path) -> dict[str, object]:
    """The same without the stage whose manifest is broken, where nothing needed it: what a store holds is listed by manifests."""
    digits = broken.parent.name.rpartition("-")[2] if broken.name == MANIFEST else None
    return {name: value for name, value in expected.items() if digits is None or not name.startswith(digits)}


def results_of(sweep: Sweep, source: Path, folder: Path) -> dict[str, object]:
    """What the sweep gives over a whole copy of the store."""
    store = linked(source, folder / "whole")
    code, said, _ = run_here(sweep, store)
    assert code == 0, said
    return outcome(store)


KINDS = ("world", "index", "testset", "poison", "pretrain", "cleanset", "clean", "sweep")


def test_a_finished_sweep(finished: Path, tmp_path: Path) -> None:
    ended = broken_one_by_one(SWEEP, finished, files_of(finished), outcome(finished), tmp_path)
    read = [name for name in ended if Path(name).name in (METRICS, "measured.json", "trials.json", "samples.json") or name.endswith(".png")]
    assert len(read) >= 6 and all(ended[name] == {"refused"} for name in read)


def test_cleanings_to_do(finished: Path, to_clean: Path, tmp_path: Path) -> None:
    expected = results_of(SWEEP, to_clean, tmp_path)
    assert expected == outcome(finished)
    ended = broken_one_by_one(SWEEP, to_clean, files_of(to_clean), expected, tmp_path / "broken", places=2)
    read = [name for name in ended if Path(name).suffix in (".arrow", ".npy", ".parquet", ".tar") or "epoch_0003/open" in name]
    assert len(read) == 9 and all(ended[name] == {"refused"} for name in read), read


def test_a_pretraining_under_way(finished: Path, training: Path, tmp_path: Path) -> None:
    expected = results_of(PRETRAINING, training, tmp_path)
    whole = outcome(finished)
    assert all(whole[name] == value for name, value in expected.items() if stages(BASE)["pretrain"].fingerprint in name)
    ended = broken_one_by_one(PRETRAINING, training, files_of(training), expected, tmp_path / "broken")
    assert all(ways == {"same"} for name, ways in ended.items() if "epoch_0002" in name or METRICS in name), ended
    assert all(ways == {"refused"} for name, ways in ended.items() if "epoch_0001/open" in name), ended
