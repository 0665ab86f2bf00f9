"""LIME of a picture against the package `lime` (LimeImageExplainer): the same picture, segments, masks and classifier, 1 000 samples.

The classifier is a TinyCLIP's zero-shot one; most of the time is its own, which no explainer can save. The package classifies 10 covered
pictures at a time unless told otherwise; some rows give it our number. The rows of a free classifier, which only looks at one pixel, show
what is left. Both sides must find the same coefficients within 1e-6, and the same R².
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lime.lime_image import LimeImageExplainer

from datasets.seeding import rng
from tests.bench.measure import Meter, Row, alternate
from trainers.audit.classifier import Classifier, zero_shot
from trainers.audit.explain.lime import LIME, Fit, fitting
from trainers.model import TinyCLIP

SIZES = {
    "full": ((32, 16, (10, None)), (64, 16, (10,)), (224, 4, (10,)), (32, 0, (10,)), (224, 0, (10,))),
    "quick": ((32, 4, (10,)), (32, 0, (10,))),
}
"""(side of the picture, channels of the ResNet's stem or 0 for the free classifier, the package's numbers of pictures at a time)."""
SAMPLES = {"full": 1000, "quick": 40}
OF, SEED = 2, 7


@contextmanager
def classifier_of(side: int, width: int) -> Iterator[Classifier]:
    """A TinyCLIP's, at CLIP's usual temperature; or one that looks at one pixel."""
    if not width:
        yield Classifier(lambda picture_BCHW, _: 4 * picture_BCHW[:, :, side // 3, side // 3], 3)
        return
    encoder = TinyCLIP(image_size=side, vision_width=width).build(0).place(torch.device("cpu")).eval()
    with torch.no_grad():
        encoder.model.logit_scale.fill_(math.log(100))
    with zero_shot(encoder, ("dog", "cat", "car", "house"), ("a photo of a {}.",)) as classifier, torch.no_grad():
        yield classifier


def run(size: str, rounds: int) -> list[Row]:
    torch.set_num_threads(1)
    rows = []
    for side, width, batches in SIZES[size]:
        lime = LIME(samples=SAMPLES[size])
        picture_CHW = torch.from_numpy(rng("picture").random((3, side, side), np.float32))
        with classifier_of(side, width) as classifier:
            segment_HW = lime.segment(picture_CHW)
            for batch in batches:
                number = batch or fitting(picture_CHW.permute(1, 2, 0))
                sides = pair(lime, classifier, picture_CHW, segment_HW, number)
                known = sides[0]()
                ours, theirs = (_timed(side, known, 8 if side_is_ours else 2) for side, side_is_ours in zip(sides, (True, False)))
                first, second = alternate(ours, theirs, rounds)
                who = f"TinyCLIP of {width} channels" if width else "free classifier"
                what = f"picture of {side} pixels, {who}, package's batch {number}"
                detail = {"r2": known.r2, "largest coefficient": float(np.abs(known.coefficient_S).max())}
                rows.append(Row(what, "pictures/CPU-s", first["per_cpu"], second["per_cpu"], mark=5.0 if batch else None, detail=detail))
    return rows


def pair(
    lime: LIME, classifier: Classifier, picture_CHW: torch.Tensor, segment_HW: np.ndarray, batch: int
) -> tuple[Callable[[], Fit], Callable[[], Fit]]:
    """(ours, the package's) explanation of a picture with these segments."""
    shape = lime.samples, int(segment_HW.max()) + 1

    def ours() -> Fit:
        on_NS = np.random.RandomState(SEED).randint(0, 2, shape).astype(np.uint8)  # the package's masks
        on_NS[0] = 1
        return lime.fitted(on_NS, lime.answers(classifier, picture_CHW, segment_HW, on_NS, OF, ""))

    def classify(image_BHWC: np.ndarray) -> np.ndarray:
        logit_BK = classifier(torch.from_numpy(image_BHWC).permute(0, 3, 1, 2), [""] * len(image_BHWC))
        return logit_BK.double().softmax(1).numpy()

    def theirs() -> Fit:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # its progress bar
            found = LimeImageExplainer(random_state=SEED).explain_instance(
                picture_CHW.permute(1, 2, 0).numpy(), classify, labels=(OF,), top_labels=None, num_samples=shape[0],
                batch_size=batch, segmentation_fn=lambda _: segment_HW, random_seed=0,
            )  # fmt: skip
        by_segment = dict(found.local_exp[OF])
        return Fit(np.array([by_segment[at] for at in range(shape[1])]), found.intercept[OF], found.score)

    return ours, theirs


def _timed(explain: Callable[[], Fit], known: Fit, times: int) -> Callable[[], dict[str, float]]:
    def measured() -> dict[str, float]:
        with Meter() as used:
            fits = [explain() for _ in range(times)]
        for fit in fits:
            np.testing.assert_allclose(fit.coefficient_S, known.coefficient_S, rtol=0, atol=1e-6)
            assert abs(fit.r2 - known.r2) < 1e-4
        return {"per_cpu": times / used.cpu}

    return measured
