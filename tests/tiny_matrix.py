"""A matrix small enough for tests: two attacks and the clean model, two defences beside none, few steps."""

from dataclasses import replace

from datasets.attack.poison import Poison
from datasets.triggers.blended import Blended
from orchestrator.experiment.matrix import Core, Defence, Matrix
from orchestrator.experiment.spec import Compute, Gate
from tests.tiny_sweep import BASE
from trainers.methods.finetune import CleanCLIP
from trainers.objectives.contrastive import MMCLSSL

assert BASE.poison and BASE.clean

MATRIX = Matrix(
    name="tiny-matrix",
    base=replace(BASE, clean=replace(BASE.clean, epochs=1), pretrain=replace(BASE.pretrain, epochs=1, checkpoint_every_steps=None)),
    attacks={
        "patch": BASE.poison,
        "blended": Poison(trigger=Blended(), target="circle", count=20),
        "clean model": None,
    },
    defences={
        "MMCL+SSL": Defence(changes={"pretrain.objective": MMCLSSL()}),
        "CleanCLIP": Defence(changes={"clean.method": CleanCLIP()}, space={"clean.lr": [1e-3, 3e-3]}),
    },
    core=Core(attacks=("patch",), defences=("CleanCLIP",), seeds=(1,)),
    gate=Gate(min_asr=0.0, action="warn"),
    compute=Compute(num_cpus=2, max_concurrent_trials=1),
)
