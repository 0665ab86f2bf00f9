"""The tiny sweep's cleanings of a model that is given by a file, GIVEN."""

import os
from dataclasses import replace

from orchestrator.experiment.spec import Given, Sweep
from tests.tiny_sweep import SWEEP as TINY

MODEL = TINY.base.pretrain.model
SWEEP: Sweep = replace(TINY, name="given", base=replace(TINY.base, pretrain=Given(model=MODEL, checkpoint=os.environ["GIVEN"])))
