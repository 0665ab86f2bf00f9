"""The stages of an experiment, and the data that its training reads."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from datasets.component import needs_of
from datasets.synthetic import World
from orchestrator.experiment.check import check, check_methods
from orchestrator.experiment.identity import IDENTITIES
from orchestrator.experiment.spec import Experiment, Given
from orchestrator.stages.attack import AttackPlan
from orchestrator.stages.base import Around, At, Stage, ensure, walk
from orchestrator.stages.cleaned import Cleaned
from orchestrator.stages.cleanset import CleaningSet
from orchestrator.stages.given import Brought
from orchestrator.stages.index import Index
from orchestrator.stages.kept import check_scores, kept_of
from orchestrator.stages.labels import Labelled  # noqa: F401 (so that labels are served)
from orchestrator.stages.patch import PatchMade  # noqa: F401 (so that patches are served)
from orchestrator.stages.target_pictures import TargetsChosen  # noqa: F401 (so that targets are served)
from orchestrator.stages.testset import TestSet
from orchestrator.stages.trained import Trained, Unpoisoned
from orchestrator.stages.world import Drawn
from orchestrator.training.inputs import Inputs


@lru_cache(maxsize=4096)
def stages(experiment: Experiment) -> dict[str, Stage]:
    """The stages of one experiment by role, in the order in which they are made."""
    check(experiment)
    around = Around(experiment=experiment)
    made, limit = around.made, experiment.data.max_dropped
    source, tests = experiment.data.source, experiment.evaluate.data
    world = test_world = None
    if isinstance(source, World):
        made["world"] = world = Drawn(world=source)
    if isinstance(tests, World):
        made["test_world"] = test_world = Drawn(world=tests)
    made["index"] = index = Index(source=None if isinstance(source, World) else source, world=world, max_dropped=limit)
    test = TestSet(tests=None if isinstance(tests, World) else tests, world=test_world, where="evaluate.data", least=1 - limit)
    made["testset"] = test
    marks = tuple(around.ask(need) for need in needs_of(experiment.poisons))
    made["poison"] = attack = AttackPlan(
        attacks=experiment.poisons, views=experiment.views, data=experiment.data, index=index, tests=tests, testset=test, needed=marks
    )
    measured = tuple(around.ask(need) for need in needs_of(experiment.evaluate.evaluators))
    prior = None if experiment.prior is None else around.ask(experiment.prior, "prior")
    assert isinstance(prior, Unpoisoned | None)
    kind = Brought if isinstance(experiment.pretrain, Given) else Trained
    trained = kind(experiment=experiment, attack=attack, testset=test, prior=prior, needed=measured)
    if experiment.keep is not None:
        everything = replace(trained, experiment=replace(experiment, keep=None))
        kept = kept_of(experiment, experiment.keep, everything)
        made |= {"scorer": kept.scores.model, "scores": kept.scores, "kept": kept}
        trained = replace(trained, kept=kept)
    made["pretrain"] = trained
    clean = experiment.clean
    if clean is not None:
        made["cleanset"] = cleanset = CleaningSet(clean=clean, attack=attack)
        needed = tuple(around.ask(need) for need in needs_of(clean.method))
        cleaned = Cleaned(experiment=experiment, cleanset=cleanset, model=trained, needed=needed)
        if clean.keep is not None:
            kept = kept_of(experiment, clean.keep, trained, cleanset)
            scorer = {} if clean.keep.model is None else {"clean_scorer": kept.scores.model}
            made |= {**scorer, "clean_scores": kept.scores, "clean_kept": kept}
            cleaned = replace(cleaned, kept=kept)
        made["clean"] = cleaned
    for stage in made.values():
        stage.fingerprint  # noqa: B018 (what cannot be identified is told now)
    return made


def look_again() -> None:
    """Forget the digests of files: they may have changed since the last command of this process."""
    IDENTITIES.clear()
    stages.cache_clear()


def trained_by(experiment: Experiment) -> Trained:
    """The experiment's pre-training."""
    stage = stages(experiment)["pretrain"]
    assert isinstance(stage, Trained)
    return stage


def knowing_made(experiment: Experiment, at: At) -> Experiment:
    """The experiment with triggers that know what was made for them; what is missing is made."""
    attack = trained_by(experiment).attack
    for one in walk(*attack.needed):
        ensure(one, at)
    return attack.resolved(experiment, at)


def cleaned_by(experiment: Experiment) -> Cleaned:
    """The experiment's cleaning; of an experiment that has one."""
    stage = stages(experiment)["clean"]
    assert isinstance(stage, Cleaned)
    return stage


def make_data(experiment: Experiment, at: At) -> Inputs:
    """Find or make the data of a training: worlds, index, test sets, poison plan. They are also kept in `at.known`. InputError where there
    are too few pairs for a score."""
    stage = trained_by(experiment)
    for one in walk(stage.attack.index, stage.testset, *stage.sets):
        ensure(one, at)
    stage.measured_on(stage.attack.unpoisoned(at), at)  # refuses a target that is no class, and sets of other classes
    ensure(stage.attack, at)
    at.known[stage.attack.fingerprint] = pairs = stage.attack.read(at)
    stage.attack.require_words(experiment.pretrain.model, at)
    check_scores(experiment, pairs.pairs())
    check_methods(experiment, len(pairs.pairs()))
    if stage.kept is not None:
        return stage.measured_on(pairs, at)  # what is kept is not known yet
    at.known[stage.fingerprint] = inputs = stage.read(at)
    return inputs
