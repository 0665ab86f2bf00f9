"""Functions that the peers' workers run. They travel by name, so this file imports next to nothing: what a worker must load to
run them is part of the peer's cost."""

from __future__ import annotations

import json
from typing import Any


def stamp_bytes(row: dict, victims: dict, trigger: Any, size: int) -> dict:
    """A sample as bytes; victims with a new picture and caption."""
    if row["__key__"] in victims:
        from datasets.attack.poisoned_shards import reencode, stamp_native
        from datasets.images.view import decode
        from datasets.seeding import rng

        seed, caption = victims[row["__key__"]]
        image_HWC = stamp_native(decode(row["jpg"]), trigger, size, rng(seed, row["__key__"]))
        meta = json.dumps(json.loads(row["json"]) | {"caption": caption})
        row = row | {"jpg": reencode(row["jpg"], image_HWC), "txt": caption.encode(), "json": meta.encode()}
    return row


def stamp_decoded(row: dict, victims: dict, trigger: Any, size: int) -> dict:
    """The same for a sample that Ray Data has decoded, and will encode."""
    if row["__key__"] in victims:
        import numpy as np

        from datasets.attack.poisoned_shards import stamp_native
        from datasets.seeding import rng

        seed, caption = victims[row["__key__"]]
        image_HWC = stamp_native(np.array(row["jpg"]), trigger, size, rng(seed, row["__key__"]))
        row = row | {"jpg": image_HWC, "txt": caption, "json": row["json"] | {"caption": caption}}
    return row


def nothing(config: dict[str, Any]) -> None:
    """The trial that does nothing."""
