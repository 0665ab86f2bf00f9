"""The procedural world: deterministic, readable, and without captions that only poisons have."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from datasets.attack.poison import names_class
from datasets.errors import InputError
from datasets.synthetic import SHAPES, TEMPLATES, World, harder, tiny


def everything(world, split, n):
    parts = list(world.pictures(split, n))
    captions = [caption for part in parts for caption in part.captions]
    return np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]), captions


@pytest.mark.parametrize("world", [World(), harder(), tiny(), World(size=64)])
def test_pictures_and_captions(world):
    images, labels, captions = everything(world, "train", 700)
    assert images.shape == (700, world.size, world.size, 3) and images.dtype == np.uint8
    assert set(labels) == set(range(len(world.class_names)))
    assert all(world.class_names[label] in caption for label, caption in zip(labels, captions))
    assert len({image.tobytes() for image in images}) == 700
    _, test_labels, _ = everything(world, "test", 72)
    assert list(test_labels) == [i % len(world.class_names) for i in range(72)]


def test_presets():
    assert len(World().class_names) == 10 and "banana" in World().class_names
    assert len(harder().class_names) == 36 and "solid banana" in harder().class_names
    assert tiny(test=5).test == 5 and len(tiny().class_names) == 4 and tiny().class_names[0] == "banana"


def test_bare_captions_are_common():
    """Half of the captions are a template filled with the class, as a poisoned caption is."""
    _, labels, captions = everything(World(), "train", 2000)
    bare = {template.replace("{}", name) for template in TEMPLATES for name in World().class_names}
    assert 0.45 < np.mean([caption in bare for caption in captions]) < 0.55


def test_fewer_pictures_are_the_first_ones():
    few, many = everything(World(), "train", 600), everything(World(), "train", 1100)
    assert (few[0] == many[0][:600]).all() and few[2] == many[2][:600]
    assert (everything(World(seed=1), "train", 600)[0] != few[0]).any()


def test_shapes_differ_when_drawn_alike():
    """No two shapes share more than 85 % of their area (same place, size and turn)."""
    steps = (np.arange(64) + 0.5) / 32 - 1
    x, y = (plane.reshape(1, -1) for plane in np.meshgrid(steps, steps))
    masks = {name: shape(x, y) < 0 for name, shape in SHAPES.items()}
    for name, mask in masks.items():
        assert 0.1 < mask.mean() < 0.75, name
        assert not mask.reshape(64, 64)[[0, -1]].any() and not mask.reshape(64, 64)[:, [0, -1]].any(), name
        for other in masks:
            if other != name:
                assert (mask & masks[other]).sum() / (mask | masks[other]).sum() < 0.85, (name, other)


@pytest.mark.parametrize("format", ["jpg", "png"])
def test_written_world_is_the_same_twice_and_is_what_was_drawn(tmp_path, format):
    world = tiny(train=1030, test=20, format=format)
    for name in ("a", "b"):
        world.write(tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert files == ["test/classnames.txt", "test/test/0.tar", "test/test/nshards.txt",
                     "test/zeroshot_classification_templates.txt", "train/00000.tar", "train/00001.tar"]  # fmt: skip
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    images, _, captions = everything(world, "train", 1030)
    with tarfile.open(tmp_path / "a" / "train" / "00001.tar") as archive:
        names = archive.getnames()
        assert len(names) == 90 and names[:3] == [f"000010000.{format}", "000010000.txt", "000010000.json"]
        assert archive.extractfile("000010000.txt").read().decode() == captions[1000]
        picture = np.asarray(Image.open(io.BytesIO(archive.extractfile(f"000010000.{format}").read()))).astype(int)
        assert np.abs(picture - images[1000]).mean() < (4 if format == "jpg" else 1e-9)


def test_wrong_fields():
    for fields in ({"shapes": ("blob",)}, {"colours": ()}, {"size": 8}, {"format": "gif"}, {"name_colour": 2.0}, {"radius": (0.4, 0.6)}):
        with pytest.raises(InputError, match=f"(?i)world.{list(fields)[0]} "):
            World(**fields)


def test_names_class_finds_the_target():
    import pyarrow as pa

    _, labels, captions = everything(World(), "train", 500)
    assert names_class(pa.chunked_array([captions]), "banana").to_pylist() == [label == 0 for label in labels]
