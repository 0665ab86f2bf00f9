"""Which defence stands against which attack?   10 rows, 17 columns; the miniature has 14.

RN50 on CC3M. Nine attacks with banana as their target, and the clean model; sixteen defences beside none, each with three settings, so
that none is tuned harder than another: pre-training with another objective, training anew without suspects, and cleaning. Three seeds for
a core, one for the rest. At full size 166 pre-trainings and 384 cleanings, some 19 500 GPU-hours at the rates of `sweeps/_study.py`;
whoever wants less takes lines out. SafeCLIP's in-modal phase, some 8 000 batches, is warmed up over as many pairs as published.
`cleansweep matrix sweeps.matrix` fills it.

The miniature: the world of the quick start, 32-pixel pictures, the same rows. It leaves out SafeCLIP and RoCLIP, whose published numbers
do not learn in so small a world (`sweeps.slides` judges SafeCLIP with others), and SLOF, whose scores are inverted there
(`sweeps.detection`).
"""

from datasets.attack.poison import Poison
from datasets.images.view import Views
from datasets.synthetic import World
from datasets.triggers.base import Trigger
from datasets.triggers.blended import Blended
from datasets.triggers.checkerboard import Checkerboard
from datasets.triggers.patch import Patch
from datasets.triggers.sig import Sig
from datasets.triggers.stripes import Stripes
from datasets.triggers.warped import Warped
from datasets.triggers.words import DualKey, Words
from orchestrator.experiment.matrix import Core, Defence, Matrix
from orchestrator.experiment.spec import Clean, Data, Evaluate, Experiment, Gate, Keep, Pretrain
from sweeps._study import CLUSTER, TWO_CORES, full
from trainers.detect.base import Score
from trainers.detect.lorex import LoREx
from trainers.detect.slof import SLOF
from trainers.methods.base import Method
from trainers.methods.deep_clustering import DeepClustering
from trainers.methods.finetune import CleanCLIP, MMCLFineTune, SSLFineTune
from trainers.methods.par import PAR
from trainers.methods.roclip import RoCLIP
from trainers.methods.safeclip import SafeCLIP
from trainers.methods.shrink_perturb import ShrinkPerturb
from trainers.methods.tbar import TBAR
from trainers.model import TinyCLIP
from trainers.objectives.base import Objective
from trainers.objectives.contrastive import MMCL, MMCLSSL

WORDS = Words(text="consider", place="prefix")


def attacks(count: int, *, patch: Trigger, blended: Trigger, sig: Trigger, warped: Trigger, stripes: Trigger, checkerboard: Trigger) \
        -> dict[str, Poison | None]:  # fmt: skip
    """The rows: one line an attack."""
    triggers = {
        "patch": patch,
        "blended": blended,
        "SIG": sig,
        "warped": warped,
        "stripes": stripes,
        "checkerboard": checkerboard,
        "dual key": DualKey(picture=patch, words=WORDS),
    }
    rows: dict[str, Poison | None] = {name: Poison(trigger=trigger, target="banana", count=count) for name, trigger in triggers.items()}
    rows["words"] = Poison(trigger=WORDS, target="banana", count=count, mode="text_only")
    rows["label-consistent"] = Poison(trigger=blended, target="banana", count=count, mode="label_consistent")
    return rows | {"clean model": None}


def cleanings(rates: list[float], small_rates: list[float], clusters: int) -> dict[str, Defence]:
    """Columns that clean, with three learning rates each: `rates`, or `small_rates` with an in-modal term."""
    methods: dict[str, Method] = {
        "SSL": SSLFineTune(),
        "CleanCLIP": CleanCLIP(),
        "CleanCLIP, λ 4": CleanCLIP(inmodal_weight=4.0),
        "shrink-perturb": ShrinkPerturb(shrink_lambda=0.8),
        "deep clustering": DeepClustering(clusters=clusters),
        "PAR": PAR(),
        "PAR, batch norm trained": PAR(batch_norm="train"),
        "TBAR": TBAR(),
    }
    lr = {"clean.lr": small_rates}
    return {
        "MMCL": Defence(changes={"clean.method": MMCLFineTune()}, space={"clean.lr": rates}),
        **{name: Defence(changes={"clean.method": method}, space=lr) for name, method in methods.items()},
        "CleanCLIP, weight decay": Defence(changes={"clean.method": CleanCLIP(), "clean.weight_decay": 1.0}, space=lr),
        "MMCL+SSL, then CleanCLIP": Defence(changes={"pretrain.objective": MMCLSSL(), "clean.method": CleanCLIP()}, space=lr),
    }


def objectives(rates: list[float], columns: dict[str, Objective | Method]) -> dict[str, Defence]:
    """Columns that pre-train in another way, with three learning rates each."""
    return {name: Defence(changes={"pretrain.objective": value}, space={"pretrain.lr": rates}) for name, value in columns.items()}


def dropped(score: Score) -> Defence:
    """A column that trains anew without the suspects, of whom it drops three shares."""
    return Defence(space={"keep": [Keep(score=score, share=share) for share in (0.85, 0.9, 0.95)]})


CORE = Core(attacks=("patch", "blended"), defences=("MMCL", "CleanCLIP", "deep clustering"), seeds=(0, 1, 2))

MATRIX = Matrix(
    name="matrix",
    data="CC3M",
    base=full("cc3m", 1500),
    attacks=attacks(
        1500, patch=Patch(), blended=Blended(), sig=Sig(), warped=Warped(), stripes=Stripes(), checkerboard=Checkerboard()
    ),
    defences={
        **objectives(
            [5e-4, 1e-3, 2e-3],
            {"MMCL+SSL pre-training": MMCLSSL(), "SafeCLIP": SafeCLIP(inmodal_warmup_steps=625), "RoCLIP": RoCLIP()},
        ),
        "SLOF, then anew": dropped(SLOF()),
        "LoREx, then anew": dropped(LoREx(trusted=1000)),
        **cleanings([1e-4, 5e-4, 1e-3], [5e-5, 1e-4, 5e-4], clusters=1000),
    },
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
        300,
        patch=Patch(pattern="saturated", size=6, cell=2, location="bottom_right"),
        blended=Blended(alpha=0.3),
        sig=Sig(),
        warped=Warped(k=32, strength=2),
        stripes=Stripes(strength=0.1),
        checkerboard=Checkerboard(size=8),
    ),
    defences={
        **objectives([1e-3, 3e-3, 6e-3], {"MMCL+SSL pre-training": MMCLSSL()}),
        "LoREx, then anew": dropped(LoREx(trusted=200)),
        **cleanings([1e-3, 5e-3, 2e-2], [1e-3, 5e-3, 2e-2], clusters=30),
    },
    core=CORE,
    gate=Gate(min_asr=75),
    compute=TWO_CORES,
)
