"""Turns a feed's numpy batches into tensors on the device.

A feed is any object with `batches(start_step) -> iterator of dicts` and `steps`. Each dict holds "step" (counted over the whole stage),
"number" int64 [B] (the pairs' numbers), "key", "image" uint8 [B, S, S, 3] and "caption"; with two views also "image_aug" and "caption_aug".
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from trainers.encoder import Encoder


class Feed(Protocol):
    """The source of the loop's batches."""

    steps: int
    """Steps of the whole stage. Every epoch has the same number of them."""

    def batches(
        self, start_step: int = 0, stop_step: int | None = None, order: np.ndarray | None = None
    ) -> Iterator[dict[str, Any]]:
        """This rank's batches from `start_step` to the end of the stage, or to `stop_step`, the start of another epoch. `order`: the
        numbers of the pairs that the epoch's steps take, in that order; None: the stage's own order."""


def image_tensor(image_BHWC: Any, device: torch.device) -> Tensor:
    """uint8 array -> uint8 tensor on the device. On a GPU the copy runs while the device computes."""
    import torch

    image_BHWC = np.require(image_BHWC, np.uint8, "W")  # torch needs writable memory; a shared object store gives read-only memory
    tensor = torch.from_numpy(image_BHWC)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def to_device(raw: Mapping[str, Any], encoder: Encoder, two_views: bool) -> dict[str, Tensor]:
    """The encoder's inputs: image, text and, with `two_views`, image_aug and text_aug. Tokenises the captions."""
    device = encoder.device
    batch = {"image": image_tensor(raw["image"], device), "text": encoder.tokenize(list(raw["caption"])).to(device)}
    if two_views:
        assert "image_aug" in raw, "this objective needs a feed with two views"
        batch["image_aug"] = image_tensor(raw["image_aug"], device)
        batch["text_aug"] = encoder.tokenize(list(raw["caption_aug"])).to(device)
    return batch


def device_batches(
    feed: Feed, encoder: Encoder, two_views: bool, start_step: int, stop_step: int | None = None, order: np.ndarray | None = None
) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """Pairs of (raw batch, tensors on the device). On a GPU a thread prepares them two batches ahead."""
    batches = feed.batches(start_step) if stop_step is None else feed.batches(start_step, stop_step, order)
    pairs = ((raw, to_device(raw, encoder, two_views)) for raw in batches)
    return _ahead(pairs, 2) if encoder.device.type == "cuda" else pairs


def _ahead(items: Iterator[Any], depth: int) -> Iterator[Any]:
    """The same items, fetched `depth` ahead by a thread. An exception in the thread is raised here."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(last: bool, value: Any) -> None:
        while not stop.is_set():
            try:
                ready.put((last, value), timeout=0.1)
                return
            except queue.Full:
                pass  # the queue is full: look again whether the consumer has stopped

    def draw() -> None:
        try:
            for item in items:
                put(False, item)
                if stop.is_set():
                    return
            put(True, None)
        except BaseException as error:  # passed to the consumer, which raises it
            put(True, error)

    threading.Thread(target=draw, daemon=True, name="batches").start()
    try:
        while True:
            last, value = ready.get()
            if last:
                if value is not None:
                    raise value
                return
            yield value
    finally:
        stop.set()


def split(batch: Mapping[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """Cut the batch into `parts` of equal size, in order."""
    chunks = {name: value.chunk(parts) for name, value in batch.items()}
    return [{name: chunk[i] for name, chunk in chunks.items()} for i in range(parts)]
