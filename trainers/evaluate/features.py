"""Features of pictures, computed once for all evaluators that get the same batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from trainers.batch import image_tensor

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.encoder import Encoder


def features(model: Encoder, batch: dict[str, Any], name: str = "image") -> Tensor:
    """Unit features [B, D] of the batch's pictures under `name`, or those that `embedded` has stored in the batch. FloatingPointError if
    they are not finite."""
    import torch

    ready = batch.get(f"{name}_features")
    feature_BD = model.encode_image(image_tensor(batch[name], model.device)) if ready is None else ready.to(model.device)
    if not torch.isfinite(feature_BD).all():
        raise FloatingPointError("the model's features of evaluation pictures are not finite")
    return feature_BD


def embedded(model: Encoder, batches: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The batches with features (in main memory) in place of pixels. The model is left unchanged."""
    import torch

    training = model.training
    model.eval()
    result = []
    with torch.no_grad():
        for batch in batches:
            names = [name for name in ("image", "image_triggered") if name in batch]
            ready = {f"{name}_features": features(model, batch, name).cpu() for name in names}
            result.append({name: value for name, value in batch.items() if name not in names} | ready)
    model.train(training)
    return result
