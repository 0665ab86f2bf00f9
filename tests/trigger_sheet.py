"""The picture of the triggers, docs/triggers.jpg: each on one picture of the procedural world, 224 pixels a side, with its name above.

    python -m tests.trigger_sheet docs/triggers.jpg
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.seeding import rng
from datasets.synthetic import World
from datasets.triggers.base import Trigger, put_on
from datasets.triggers.blended import Blended
from datasets.triggers.blended_picture import BlendedPicture
from datasets.triggers.checkerboard import Checkerboard
from datasets.triggers.nashville import Nashville
from datasets.triggers.patch import Patch
from datasets.triggers.patch_file import PatchFile
from datasets.triggers.sig import Sig
from datasets.triggers.stripes import Stripes
from datasets.triggers.triangles import Triangles
from datasets.triggers.warped import Warped
from datasets.triggers.watermark import Watermark, letters

SIDE, ABOVE, ACROSS = 224, 15, 5


def sheet(triggers: dict[str, Trigger | None], image_HWC: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3]: the picture with each trigger, row by row; None: as it is."""
    tiles = [_tile(name, trigger, image_HWC) for name, trigger in triggers.items()]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % ACROSS)
    return np.concatenate([np.concatenate(tiles[i : i + ACROSS], axis=1) for i in range(0, len(tiles), ACROSS)])


def _tile(name: str, trigger: Trigger | None, image_HWC: np.ndarray) -> np.ndarray:
    tile_HWC = np.full((SIDE + ABOVE, SIDE + 4, 3), 255, np.uint8)
    mask_YX = letters(name)
    tile_HWC[2:13, 2 : 2 + mask_YX.shape[1]][mask_YX] = 0
    tile_HWC[ABOVE:, :SIDE] = image_HWC if trigger is None else put_on(trigger, image_HWC, rng(0, name))
    return tile_HWC


def main(out: str) -> None:
    (pictures,) = World(size=SIDE, train=4).pictures("train", 4)
    first, other = pictures.images[:2]
    with tempfile.TemporaryDirectory() as folder:
        given, patch = f"{folder}/given.png", f"{folder}/patch.npy"
        Image.fromarray(other).save(given)
        np.save(patch, rng("patch").random((16, 16, 3), dtype=np.float32))
        triggers: dict[str, Trigger | None] = {
            "no trigger": None,
            "Patch": Patch(),
            "Patch white, 50, bottom right": Patch(pattern="white", size=50, location="bottom_right"),
            "Blended": Blended(),
            "BlendedPicture": BlendedPicture(path=given),
            "Sig": Sig(),
            "Warped": Warped(),
            "Stripes": Stripes(),
            "Stripes, another key": Stripes(),
            "Stripes at 0.3, to be seen": Stripes(strength=0.3),
            "Triangles": Triangles(),
            "Watermark": Watermark(),
            "Checkerboard": Checkerboard(),
            "Nashville": Nashville(),
            "PatchFile": PatchFile(path=patch),
        }
        Image.fromarray(sheet(triggers, first)).save(Path(out), quality=85, subsampling=0, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1])
