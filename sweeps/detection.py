"""Do scores of training pairs find the poison, and does training without the suspects help?   9 pre-trainings a seed, no cleaning.

The quick start's world with 0.3, 1 and 3 % of its pairs poisoned. Every model is asked how well scores of its own training pairs find the
victims, over a grid of k and m: where the reference of m pairs holds k poisons or more, the scores are inverted. `--seeds 0,1,2` repeats
it. Then the tenth of the pairs with the highest scores is dropped and a second model trained on the rest, by SLOF and by LoREx, which is
given 200 clean pairs: its ASR against the first one's.
The table: `python -m tests.science.detection --store STORE`.
"""

from dataclasses import replace

from datasets.attack.poison import Poison
from datasets.triggers.blended import Blended
from orchestrator.experiment.spec import Compute, Gate, Keep, Sweep
from orchestrator.sweep import tune
from sweeps.quickstart import BASE as QUICKSTART
from trainers.detect.cosine import CosineByModel
from trainers.detect.dao import DAO
from trainers.detect.isolation_forest import IsolationForest
from trainers.detect.kdistance import KDistance
from trainers.detect.lid import LID
from trainers.detect.lorex import LoREx
from trainers.detect.slof import SLOF
from trainers.evaluate.detection import Detection

RATES = (0.003, 0.01, 0.03)
GRID = tuple((k, m) for m in (256, 1024, 2048) for k in (16, 64, 128))

SCORES = (
    *(score(k=k, m=m) for score in (KDistance, SLOF) for k, m in GRID),
    DAO(k=64, m=256),
    LID(k=64, m=256),
    IsolationForest(),
    LoREx(trusted=200),
    CosineByModel(),
)
KEEPS = tuple(Keep(score=score, share=0.9) for score in (SLOF(k=64, m=256), LoREx(trusted=200)))

BASE = replace(
    QUICKSTART,
    poison=Poison(trigger=Blended(alpha=0.3), target="banana", rate=RATES[-1]),
    evaluate=replace(QUICKSTART.evaluate, evaluators=(Detection(scores=SCORES, every=0),)),
    clean=None,
)

SWEEP = Sweep(
    name="detection",
    base=BASE,
    space={"poison.rate": tune.grid_search(list(RATES)), "keep": tune.grid_search([None, *KEEPS])},
    gate=Gate(action="warn"),  # a training without the poison is what a keep is for
    compute=Compute(num_cpus=2),
)
