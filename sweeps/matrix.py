"""Which defence stands against which attack?   8 rows, 10 columns.

RN50 on CC3M. Seven attacks with banana as their target, and the clean model; nine defences beside none, each with three settings, so that
none is tuned harder than another. Three seeds for a core, one for the rest. At full size 38 pre-trainings and 246 cleanings, some 5 400
GPU-hours at the rates of `sweeps/_study.py`. `cleansweep matrix sweeps.matrix` fills it.

The miniature: the world of the quick start, 32-pixel pictures, the same rows and columns.
"""

from datasets.attack.poison import Poison
from datasets.images.view import Views
from datasets.synthetic import World
from datasets.triggers.base import Trigger
from datasets.triggers.blended import Blended
from datasets.triggers.patch import Patch
from datasets.triggers.sig import Sig
from datasets.triggers.warped import Warped
from datasets.triggers.words import DualKey, Words
from orchestrator.experiment.matrix import Core, Defence, Matrix
from orchestrator.experiment.spec import Clean, Data, Evaluate, Experiment, Gate, Pretrain
from sweeps._study import CLUSTER, TWO_CORES, full
from trainers.methods.deep_clustering import DeepClustering
from trainers.methods.finetune import CleanCLIP, MMCLFineTune, SSLFineTune
from trainers.methods.shrink_perturb import ShrinkPerturb
from trainers.model import TinyCLIP
from trainers.objectives.contrastive import MMCL, MMCLSSL

WORDS = Words(text="consider", place="prefix")


def attacks(patch: Trigger, blended: Trigger, sig: Trigger, warped: Trigger, count: int) -> dict[str, Poison | None]:
    """The rows: one line an attack."""
    return {
        "patch": Poison(trigger=patch, target="banana", count=count),
        "blended": Poison(trigger=blended, target="banana", count=count),
        "SIG": Poison(trigger=sig, target="banana", count=count),
        "warped": Poison(trigger=warped, target="banana", count=count),
        "label-consistent": Poison(trigger=blended, target="banana", count=count, mode="label_consistent"),
        "dual key": Poison(trigger=DualKey(picture=patch, words=WORDS), target="banana", count=count),
        "words": Poison(trigger=WORDS, target="banana", count=count),
        "clean model": None,
    }


def defences(rates: list[float], small_rates: list[float], pretraining: list[float], clusters: int) -> dict[str, Defence]:
    """The columns: one line a defence. Each has three settings; `rates` are learning rates, `small_rates` those with an in-modal term."""
    lr = {"clean.lr": small_rates}
    return {
        "MMCL+SSL pre-training": Defence(changes={"pretrain.objective": MMCLSSL()}, space={"pretrain.lr": pretraining}),
        "MMCL": Defence(changes={"clean.method": MMCLFineTune()}, space={"clean.lr": rates}),
        "SSL": Defence(changes={"clean.method": SSLFineTune()}, space=lr),
        "CleanCLIP": Defence(changes={"clean.method": CleanCLIP()}, space=lr),
        "CleanCLIP, λ 4": Defence(changes={"clean.method": CleanCLIP(inmodal_weight=4.0)}, space=lr),
        "CleanCLIP, weight decay": Defence(changes={"clean.method": CleanCLIP(), "clean.weight_decay": 1.0}, space=lr),
        "shrink-perturb": Defence(changes={"clean.method": ShrinkPerturb(shrink_lambda=0.8)}, space=lr),
        "deep clustering": Defence(changes={"clean.method": DeepClustering(clusters=clusters)}, space=lr),
        "MMCL+SSL, then CleanCLIP": Defence(changes={"pretrain.objective": MMCLSSL(), "clean.method": CleanCLIP()}, space=lr),
    }


CORE = Core(attacks=("patch", "blended"), defences=("MMCL", "CleanCLIP", "deep clustering"), seeds=(0, 1, 2))

MATRIX = Matrix(
    name="matrix",
    data="CC3M",
    base=full("cc3m", 1500),
    attacks=attacks(Patch(), Blended(), Sig(), Warped(), count=1500),
    defences=defences([1e-4, 5e-4, 1e-3], [5e-5, 1e-4, 5e-4], [5e-4, 1e-3, 2e-3], clusters=1000),
    core=CORE,
    gate=Gate(min_asr=75),
    compute=CLUSTER,
)

WORLD = World(train=4000, test=1000, shapes=("banana", "circle", "triangle", "heart", "cross", "ring", "arrow", "hourglass"))

MINIATURE = Matrix(
    name="matrix-miniature",
    data="procedural world, 4 000 pairs of 8 shapes",
    base=Experiment(
        data=Data(source=WORLD),
        views=Views(size=32),
        poison=Poison(trigger=Blended(alpha=0.3), target="banana", count=300),
        pretrain=Pretrain(model=TinyCLIP(), objective=MMCL(), epochs=10, batch_size=64, lr=3e-3, weight_decay=0.1, warmup_steps=20),
        clean=Clean(method=CleanCLIP(), pairs=1000, epochs=3, batch_size=64, lr=5e-3, weight_decay=0.1, warmup_steps=5),
        evaluate=Evaluate(data=WORLD),
    ),
    attacks=attacks(
        Patch(pattern="saturated", size=6, cell=2, location="bottom_right"), Blended(alpha=0.3), Sig(), Warped(k=32, strength=2), count=300
    ),
    defences=defences([1e-3, 5e-3, 2e-2], [1e-3, 5e-3, 2e-2], [1e-3, 3e-3, 6e-3], clusters=30),
    core=CORE,
    gate=Gate(min_asr=75),
    compute=TWO_CORES,
)
