"""Where does an MMCL+SSL model begin to resist CleanCLIP? A search.   2 pre-trainings, 14 cleanings, about 20 GPU-hours.

The study says that CleanCLIP costs accuracy on a model pre-trained with MMCL+SSL that it does not cost on one pre-trained with MMCL
(claim b). No miniature has shown it: see MINIATURES.md. This sweep looks for where it starts. The rules were written before it was run:

* Criterion: that of claim b, `Resists` in `sweeps/_study_claims.py`, for each regime by itself. The share of accuracy kept at ASR ≤ 5 %,
  MMCL minus MMCL+SSL, paired by seed, has a 95 % interval above 0 over three seeds, and no choice lies at an end of its grid.
* Grid: seven learning rates, each twice the one before, from where nothing is cleaned to where accuracy collapses, the same for both.
* A regime counts only if the attack takes on both models in every seed (gate: ASR of 75 % or more). Others are reported as not judged.
* Axes, each changed alone from the harder world of `sweeps.main_cc6m`, then all together:
  1. the harder world as it is: 36 classes, 12 000 pairs, embedding of 64, 12 epochs;
  2. captions that name colour, size and background each time: some 5 000 different ones;
  3. an embedding of 256;
  4. 24 epochs of pre-training;
  5. all of 2 to 4.
* Each is cleaned three times: with 600 pairs, 5 %; with 180, 1.5 %; and with 32, fewer than there are classes, so that a rate high enough
  to forget the trigger forgets classes that it cannot learn again. The latter two are the same command with
  `--clean.pairs 180 --clean.epochs 20` and with `--clean.pairs 32 --clean.batch_size 32 --clean.epochs 30`.
* Whatever comes out is written down for every regime, as a map of where it was looked for. Regimes are run in this order.

At full size: one run of 200 000 pairs of such a world, 64 pixels, embedding of 256, batches of 512, 30 epochs, a cleaning set of 2 %.
That is a night on one GPU, not yet tried.
"""

from dataclasses import replace
from typing import Any

from datasets.images.view import Views
from datasets.synthetic import World, harder
from orchestrator.experiment.override import override_all
from orchestrator.experiment.spec import Compute, Data, Evaluate, Experiment, Gate, Sweep
from orchestrator.sweep import tune
from sweeps._study import OBJECTIVES, SEEDS, TWO_CORES, miniature
from sweeps._study_claims import Resists
from trainers.model import TinyCLIP

RATES: Any = tune.grid_search([5e-4 * 2**step for step in range(7)])
NAMED = harder(name_colour=1.0, name_size=1.0, name_background=1.0)


def experiment(world: World, **changes: Any) -> Experiment:
    """The harder world's miniature over `world`, cleaned with CleanCLIP."""
    base = replace(miniature(), data=Data(source=world), evaluate=Evaluate(data=world))
    fields = {
        "poison.trigger.location": "random", "poison.target": "solid banana", "poison.count": 240,
        "pretrain.epochs": 12, "pretrain.batch_size": 128, "pretrain.warmup_steps": 50,
        "clean.pairs": 600, "clean.epochs": 12,
    }  # fmt: skip
    return override_all(base, {**fields, **changes})


def regime(world: World | None = None, embed_dim: int = 64, epochs: int = 12) -> dict[str, Any]:
    """One regime as a point of the sweep: paths and values."""
    world = world or harder()
    return {
        "data.source": world,
        "evaluate.data": world,
        "pretrain.model": TinyCLIP(embed_dim=embed_dim),
        "pretrain.epochs": epochs,
    }


BIG = harder(train=200_000, test=4000, size=64, name_colour=1.0, name_size=1.0, name_background=1.0)

SWEEP = Sweep(
    name="regime",
    base=experiment(BIG, **{
        "views": Views(size=64), "poison.trigger.size": 12, "poison.count": 4000, "pretrain.epochs": 30,
        "pretrain.model": TinyCLIP(embed_dim=256, image_size=64, vision_width=32, text_width=256, text_heads=4),
        "pretrain.batch_size": 512, "pretrain.warmup_steps": 500, "clean.pairs": 4000, "clean.epochs": 10,
    }),
    space={"pretrain.objective": OBJECTIVES, "clean.lr": RATES},
    gate=Gate(min_asr=75, action="warn"),
    claims=(Resists(),),
    compute=Compute(gpus_per_worker=1, trial_gpus=1, loader_workers=6),
)

MINIATURE = Sweep(
    name="regime-miniature",
    base=experiment(harder()),
    points=(
        regime(),
        regime(NAMED),
        regime(embed_dim=256),
        regime(epochs=24),
        regime(NAMED, embed_dim=256, epochs=24),
    ),
    space={"pretrain.seed": SEEDS, "pretrain.objective": OBJECTIVES, "clean.lr": RATES},
    gate=Gate(min_asr=75, action="warn"),
    claims=(Resists(),),
    compute=TWO_CORES,
)
