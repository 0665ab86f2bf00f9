"""The tiny sweep's cleanings of a model that is given by a file, GIVEN."""

import os
from dataclasses import replace

from orchestrator.spec import Given, Sweep
from tests.tiny_sweep import SWEEP as TINY
from trainers.model import TinyCLIP

SWEEP: Sweep = replace(TINY, name="given", base=replace(TINY.base, pretrain=Given(model=TinyCLIP(), checkpoint=os.environ["GIVEN"])))
