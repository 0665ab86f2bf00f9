"""How similar a model finds pictures and their captions: of every pair of a stage, whatever the number of ranks. Shape suffix: N pairs."""

from __future__ import annotations

import numpy as np
import torch

from trainers import distributed
from trainers.batch import image_tensor
from trainers.encoder import Encoder
from trainers.methods.base import Run


def similarities(encoder: Encoder, run: Run) -> tuple[np.ndarray, np.ndarray]:
    """(cosine float64 [N], poisoned bool [N]) of all pairs in their order, in evaluation mode; the same on every rank, for any number of
    them. FloatingPointError where a cosine is not finite."""
    parts: list[tuple[int, np.ndarray, np.ndarray]] = []
    training = encoder.training
    encoder.eval()
    with torch.no_grad():
        for batch in run.pairs():
            image_BD = encoder.encode_image(image_tensor(batch["image"], encoder.device))
            text_BD = encoder.encode_text(encoder.tokenize(list(batch["caption"])).to(encoder.device))
            parts.append((batch["number"], (image_BD * text_BD).sum(dim=1).double().cpu().numpy(), np.asarray(batch["poisoned"])))
    encoder.train(training)
    parts = sorted(distributed.gather_lists(parts, run.world), key=lambda part: part[0])
    cosine_N, poisoned_N = (np.concatenate([part[column] for part in parts]) for column in (1, 2))
    if not np.isfinite(cosine_N).all():
        raise FloatingPointError("the pairs cannot be told apart by their cosines: the model's features are not finite")
    return cosine_N, poisoned_N


def largest(cosine_N: np.ndarray, share: float) -> np.ndarray:
    """bool [N]: the share·N pairs (rounded) of largest cosine; of equal ones those of smaller number."""
    chosen_N = np.zeros(len(cosine_N), bool)
    chosen_N[np.argsort(-cosine_N, kind="stable")[: round(share * len(cosine_N))]] = True
    return chosen_N
