"""The data stages in a store: worlds at any place, and the list of what the index leaves out. Without Ray: one process indexes."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from datasets.evaluation.evalset import EvalSet
from datasets.evaluation.retrieval import RetrievalSet
from datasets.index.source import Source
from orchestrator.stages.base import At, ensure
from orchestrator.stages.graph import make_data, stages
from orchestrator.stages.index import unknown_extension
from orchestrator.stages.testset import TestSet
from orchestrator.store import Store, verify
from tests.tiny_sweep import BASE
from tests.unit.making import encoded, members, picture, tar
from tests.unit.trainers.evaluate.test_analysis import local_index


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import orchestrator.cluster.streaming

    monkeypatch.setattr(orchestrator.cluster.streaming, "index_shards", local_index)


@pytest.mark.parametrize("name", ["[x]", "{a,b}", "what?", "feature%2Fx", "a b#ü*"])
def test_a_world_is_found_in_a_store_of_any_name(tmp_path, name):
    store = Store(tmp_path / name)
    inputs = make_data(BASE, At(store=store))
    assert all(url.startswith(f"{tmp_path}/{name}/world/") for url in inputs.urls) and len(inputs.pairs()) > 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_index_lists_what_it_leaves_out(tmp_path: Path):
    tar(tmp_path / "data" / "0.tar", [*members(0, 200), ("x.txt", b"a caption"), ("y.gif", b"GIF")])
    experiment = replace(BASE, data=replace(BASE.data, source=Source(urls=str(tmp_path / "data"))))
    store = Store(tmp_path / "store")
    stage = stages(experiment)["index"]
    make_data(experiment, At(store=store))
    found = store.find("index", stage.fingerprint)
    assert found is not None and verify(found) == [] and "dropped.csv" in found.manifest["files"]
    assert list(csv.reader((found.folder / "dropped.csv").read_text().splitlines()))[1:] == [
        ["x", "0.tar", "", "no_image"],
        ["y", "0.tar/y.gif", "", "unknown_extension"],
    ]
    assert unknown_extension(found.folder / "index.arrow") == "; the first of an unknown extension is y.gif"


@pytest.mark.parametrize("kind", [EvalSet, RetrievalSet])
def test_what_the_tars_of_a_set_hold_beside_its_samples_is_said_and_counted(
    tmp_path: Path, kind: type[EvalSet | RetrievalSet], said: list[str]
):
    for number, more in enumerate(([("0.png", encoded(picture(1), "PNG"))], [("noext", b"3"), ("a.md", b"notes")], [])):
        sample = [(f"{number}.jpg", encoded(picture(0))), (f"{number}.cls", b"0"), (f"{number}.txt", b"a cat\na dog")]
        tar(tmp_path / "set" / "test" / f"{number}.tar", [*sample, *more])
    (tmp_path / "set" / "classnames.txt").write_text("cat\n")
    store, stage = Store(tmp_path / "store"), TestSet(tests=kind(path=str(tmp_path / "set")))
    at = At(store=store)
    ensure(stage, at)
    made = stage.read(at)
    found = store.find("testset", stage.fingerprint)
    assert found is not None and len(made.pairs()) == 3
    assert json.loads((found.folder / "summary.json").read_text()) == {"samples": 3, "kept": 3, "drops": {}, "passed_over": 3}
    assert f"NOTE {tmp_path / 'set'}: 3 files in the tars are no sample's and are passed over (second pictures, notes, links)." in said
