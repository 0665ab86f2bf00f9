"""The golden loss curve: equal to itself bit for bit, and to the stored one within 1e-5."""

import json

import pytest
import torch

from tests.baselines.make_golden import FILE, curve


def test_golden_loss_curve_repeats_bit_for_bit():
    assert curve(torch.float32) == curve(torch.float32)


def test_golden_loss_curve_equals_the_file():
    stored = json.loads(FILE.read_text())["train/loss"]
    assert curve(torch.float64) == pytest.approx(stored, abs=1e-5)
    assert len(stored) == 20 and stored[-1] < stored[0]
