"""The sweep whose results lie in `store/`, written out in full. Only imports may change here: the store must be found again."""

from ray import tune

from datasets.attack.poison import Poison
from datasets.images.view import Views
from datasets.synthetic import World
from datasets.triggers.patch import Patch
from orchestrator.experiment.spec import Clean, Data, Evaluate, Experiment, Gate, Pretrain, Sweep
from trainers.methods.finetune import CleanCLIP, MMCLFineTune
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCL

WORLD = World(
    shapes=("banana", "circle", "cross", "triangle"), colours=("red", "green", "blue"), fills=("solid",), radius=(0.35, 0.43),
    turn=15.0, size=32, name_colour=0.5, name_size=0.0, name_background=0.0, format="jpg", train=400, test=80, seed=0,
)  # fmt: skip

SWEEP = Sweep(
    name="tiny",
    base=Experiment(
        data=Data(source=WORLD),
        views=Views(size=32),
        poison=Poison(trigger=Patch(pattern="saturated", size=6, cell=2, location="bottom_right"), target="banana", count=20),
        pretrain=Pretrain(model=TinyCLIP(), objective=MMCL(), epochs=2, batch_size=32, lr=3e-3, warmup_steps=5),
        clean=Clean(method=CleanCLIP(), pairs=96, epochs=3, batch_size=32, lr=1e-3, warmup_steps=2),
        evaluate=Evaluate(data=WORLD),
    ),
    space={"clean.method": tune.grid_search([MMCLFineTune(), CleanCLIP()]), "clean.lr": tune.grid_search([1e-3, 3e-3])},
    gate=Gate(min_asr=0.0, action="warn"),
)
