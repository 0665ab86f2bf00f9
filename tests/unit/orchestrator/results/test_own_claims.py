"""A lab's own method, objective and claim: each is found under its own name, beside CleanCLIP and never as it."""

import csv
import io
import json
import sys
from dataclasses import dataclass, replace

import pytest

from datasets.errors import InputError
from orchestrator.commands.cli import run
from orchestrator.experiment.fingerprint import described
from orchestrator.report.claims_table import claims_text, write_claims
from orchestrator.report.drawing import look
from orchestrator.report.page import html
from orchestrator.report.scatter import scatter
from orchestrator.report.tables import pareto_csv
from orchestrator.results.claims import Verdict, called, judged
from orchestrator.results.names import method_of, objective_of
from orchestrator.results.points import panels
from orchestrator.results.selection import table
from orchestrator.sweep.loading import load_sweep
from orchestrator.sweep.plan import make_plan
from orchestrator.tracking.tracker import Tracker
from sweeps._study_claims import CLAIMS
from tests.inprocess import run_here
from tests.tiny_sweep import SWEEP
from tests.unit.fake_study import seeded_study
from trainers.methods.finetune import CleanCLIP

LAB = '''
from dataclasses import dataclass, replace

from ray import tune

from orchestrator.results.claims import Claim, benches, verdict_of
from orchestrator.results.points import mean_interval
from orchestrator.results.selection import RULE
from tests.tiny_sweep import BASE, SWEEP as TINY
from trainers.methods.base import Method
from trainers.methods.finetune import CleanCLIP
from trainers.objectives.base import Objective
from trainers.objectives.contrastive import MMCL


@dataclass(frozen=True, kw_only=True)
class PAR(Method):
    """A lab's cleaning, with the fields of the study's fine-tunings."""

    id = "LabPAR"
    clip_weight: float = 1.0
    inmodal_weight: float = 1.0

    def train(self, model, run):
        return run.fit(model, MMCL())


@dataclass(frozen=True, kw_only=True)
class RoCLIP(Objective):
    """A lab's pre-training, with the fields of the study's objectives."""

    id = "LabRoCLIP"
    clip_weight: float = 1.0
    inmodal_weight: float = 0.0
    two_views = False

    def loss(self, model, batch):
        return MMCL().loss(model, batch)


@dataclass(frozen=True, kw_only=True)
class Cleans(Claim):
    """Estimate: accuracy at the ASR wanted."""

    seeds: int = 3
    text = "PAR cleans a <RoCLIP> model"
    criterion = "Every seed has a point with ASR ≤ 5 %."
    needed = "It needs PAR on a model pre-trained with RoCLIP."

    def judge(self, study):
        for bench in benches(study, RoCLIP, PAR):
            row = bench.row(RULE["acc_at_asr_le_5"])
            against = [*bench.against(row), *["a seed has no such point"] * (len(row.reached) < len(row.choices))]
            measured = mean_interval([choice.accuracy for choice in row.reached])
            yield verdict_of(bench, row, against=against, fine="every seed has one", measure="accuracy, %", measured=measured)


SWEEP = replace(
    TINY,
    name="lab",
    base=replace(BASE, pretrain=replace(BASE.pretrain, epochs=1), clean=replace(BASE.clean, epochs=1, warmup_steps=0)),
    space={
        "pretrain.objective": tune.grid_search([MMCL(), RoCLIP()]),
        "clean.method": tune.grid_search([CleanCLIP(), PAR()]),
    },
    claims=(Cleans(),),
)
MINIATURE = replace(SWEEP, name="small lab")
'''


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The module of a lab's sweep file, as `load_sweep` reads it."""
    path = tmp_path_factory.mktemp("lab") / "lab.py"
    path.write_text(LAB, encoding="utf-8")
    load_sweep(str(path))
    return sys.modules["cleansweep_sweep_lab"]


@pytest.fixture
def study(lab, tmp_path):
    """CleanCLIP and PAR on models pre-trained with MMCL and RoCLIP, three seeds."""
    study = seeded_study(tmp_path, methods=("CleanCLIP",), strength=(1.0, 1.0))
    for stage in study.pretrains[1::2]:
        stage.config["pretrain"]["objective"] = described(lab.RoCLIP())
    for trial in study.trials:
        trial.overrides["pretrain.objective"] = trial.config["pretrain"]["objective"]
    for trial in list(study.trials):
        config = {**trial.config, "clean": {**trial.config["clean"], "method": described(lab.PAR())}}
        own = replace(trial, name="par", fingerprint=trial.fingerprint[::-1], config=config)
        study.trials.append(replace(own, overrides={**trial.overrides, "clean.method": lab.PAR()}))
    return study


def without(study, *names):
    """The study without the trials of these methods, and without the pre-trainings of these objectives."""
    kept = [stage for stage in study.pretrains if objective_of(stage) not in names]
    there = {stage.fingerprint for stage in kept}
    return replace(study, pretrains=kept, trials=[t for t in study.trials if method_of(t) not in names and t.pretrain in there])


def test_they_are_found_under_their_own_names_beside_cleanclip(study):
    assert {panel.objective for panel in panels(study)} == {"MMCL", "RoCLIP"}
    assert {(row.panel.label, row.method) for row in table(study)} == {(o, m) for o in ("MMCL", "RoCLIP") for m in ("CleanCLIP", "PAR")}
    own = {trial.fingerprint for trial in study.trials if trial.name == "par"}
    for row in csv.DictReader(io.StringIO(pareto_csv(study))):
        assert row["method"] == ("PAR" if row["fingerprint"] in own else "CleanCLIP")
    styles, usual = look(study), look(without(study, "PAR"))
    assert styles["CleanCLIP"] == usual["CleanCLIP"] != styles["PAR"]
    drawn = scatter(study)
    assert [text.get_text() for text in drawn.legends[0].texts] == ["CleanCLIP", "PAR", "before cleaning"]
    dots = [line for axes in drawn.axes for line in axes.lines if line.get_linestyle() == "None" and line.get_marker() != "*"]
    worn = [(line.get_color(), line.get_marker()) for line in dots]
    assert worn.count(styles["PAR"]) == worn.count(styles["CleanCLIP"]) == len(own)


def test_mlflow_names_them(study, tmp_path):
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", study.name, tmp_path / "files")
    parent = tracker.sweep_run(study)
    made = [tracker.stage_run(trial, parent, "clean") for trial in (study.trials[0], study.trials[-1])]
    tags = [tracker._client.get_run(run).data.tags for run in made]
    assert [(tag["pretrain"], tag["method"]) for tag in tags] == [("MMCL", "CleanCLIP"), ("RoCLIP", "PAR")]


def test_a_labs_claim_is_judged_by_its_own_classes_and_the_studys_by_theirs(lab, study):
    verdict, *others = judged([lab.Cleans(), *CLAIMS], [study])
    assert (verdict.claim, verdict.verdict, verdict.seeds, verdict.images) == ("Cleans", "shown", 3, 1000)
    assert verdict.where == "RoCLIP, cleaned with 600 pairs" and verdict.low < verdict.estimate < verdict.high
    assert others == judged(CLAIMS, [without(study, "PAR", "RoCLIP")]) and others[0].verdict == "shown"
    for part in (without(study, "PAR"), without(study, "RoCLIP")):
        (missing,) = judged([lab.Cleans()], [part])
        assert (missing.verdict, missing.reason) == ("not tried", lab.Cleans.needed)

    @dataclass(frozen=True, kw_only=True)
    class Longer(lab.PAR):
        """Derived from it, and another method."""

    for trial in study.trials[len(study.trials) // 2 :]:
        trial.config["clean"]["method"] = trial.overrides["clean.method"] = described(Longer())
    assert judged([lab.Cleans()], [study])[0].verdict == "not tried"


def test_it_is_on_the_page_in_the_files_and_in_the_text(lab, study, tmp_path):
    page = html(replace(study, claims=(lab.Cleans(), CLAIMS[0])))
    assert "(Cleans) PAR cleans a &lt;RoCLIP&gt; model" in page and page.count("shown</b>") == 2 and "Every seed has a point" in page
    found, written = write_claims([lab.Cleans()], [study], tmp_path / "reports")
    assert "PAR cleans a &lt;RoCLIP&gt; model" in written.read_text()
    assert "(Cleans) PAR cleans a <RoCLIP> model: SHOWN" in claims_text(found)
    (fact,) = json.loads((tmp_path / "reports" / "claims.json").read_text())["claims"]
    assert (fact["claim"], fact["verdict"], fact["criterion"]) == ("Cleans", "shown", lab.Cleans.criterion)


def test_claims_of_one_label_are_told_apart(lab):
    @dataclass(frozen=True, kw_only=True)
    class Cleans(lab.Cleans):
        """Another of this name."""

    assert list(called([lab.Cleans(), CLAIMS[0], lab.Cleans()]).values()) == ["Cleans", "a"]
    assert list(called([lab.Cleans(), lab.Cleans(seeds=5)]).values()) == ["Cleans (seeds 3)", "Cleans (seeds 5)"]
    names = list(called([lab.Cleans(), Cleans()]).values())
    assert len(set(names)) == 2 and all(name.startswith("Cleans (") for name in names)


def test_a_claim_that_fails_is_said_and_the_others_are_judged(lab, study):
    @dataclass(frozen=True, kw_only=True)
    class Broken(lab.Cleans):
        wrong: str = ""

        def judge(self, study):
            yield Verdict(verdict=self.wrong or str(1 / 0), reason="")

    broken, unknown, fine = judged([Broken(), Broken(wrong="maybe"), lab.Cleans()], [study])
    assert broken.verdict == unknown.verdict == "not judged" and fine.verdict == "shown"
    assert "Its code failed: ZeroDivisionError in test_own_claims.py, line" in broken.reason
    assert "Verdict.verdict is 'maybe'; accepted: shown, not shown, not tried" in unknown.reason


@pytest.mark.parametrize(("claims", "said"), [
    (True, "Sweep.claims: True is a bool"), (("a",), r"Sweep.claims\[0\]: 'a' is a str"),
    ((CleanCLIP(),), "Sweep.claims has a CleanCLIP; accepted are claims"),
])
def test_what_is_no_claim_is_refused(claims, said):
    with pytest.raises(InputError, match=said):
        make_plan(replace(SWEEP, claims=claims))


def test_a_sweep_file_with_its_own_claim_is_run_reported_and_judged(lab, tmp_path, capsys):
    store = tmp_path / "store"
    where = [lab.__file__, "--store", str(store), "--clean.epochs", "2"]
    assert run(["plan", *where]) == 0 and run(["claims", *where]) == 2
    assert "holds nothing of lab yet" in capsys.readouterr().err
    code, said, study = run_here(load_sweep(lab.__file__, {"clean.epochs": "2"}), store)
    assert code == 0 and len(study.trials) == 4 and called(study.claims).values(), said
    assert run(["claims", *where]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "(Cleans) PAR cleans a <RoCLIP> model: NOT SHOWN RoCLIP, cleaned with 96 pairs; 1 seed, 80 images" in told
    assert "Fewer than 3 seeds" in told and str(store / "reports" / "claims.html") in told
    assert run(["report", *where]) == 0
    (page,) = (store / "reports").glob("lab-*/report.html")
    assert "(Cleans) PAR cleans a &lt;RoCLIP&gt; model" in page.read_text()
    methods = {row["method"] for row in csv.DictReader((page.parent / "points.csv").open())}
    assert methods == {"", "CleanCLIP", "PAR"}
    assert run(["claims", lab.__file__, "--miniature", "--store", str(store), "--clean.epochs", "2"]) == 0
    silent = tmp_path / "silent.py"
    silent.write_text("from dataclasses import replace\nimport cleansweep_sweep_lab as lab\nSWEEP = replace(lab.SWEEP, claims=())\n")
    assert run(["claims", str(silent), "--store", str(store), "--clean.epochs", "2"]) == 2
    assert "no claim to judge: lab has an empty Sweep.claims" in capsys.readouterr().err
    assert run(["claims", str(silent), lab.__file__, "--store", str(store), "--clean.epochs", "2"]) == 0
