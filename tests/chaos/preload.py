"""Imports what a command needs, for the process that commands are forked from."""

import open_clip  # noqa: F401
import torch  # noqa: F401

from orchestrator.commands import cli  # noqa: F401
from orchestrator.running import driver  # noqa: F401
from orchestrator.training import workers  # noqa: F401
from tests import inprocess  # noqa: F401
from tests.chaos import small_sweep  # noqa: F401
