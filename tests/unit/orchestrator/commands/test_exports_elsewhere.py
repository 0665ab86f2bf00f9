"""What `cleansweep export` writes, loaded by programs that know nothing of it: Hugging Face transformers and CLIP_benchmark."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from datasets.images.resize import canonical
from datasets.synthetic import tiny
from orchestrator.commands.evaluate import evaluate_on
from orchestrator.commands.export import export_checkpoint
from orchestrator.experiment.spec import Compute
from tests.experiments import ROOT
from tests.tiny_sweep import BASE
from trainers.encoder import MEAN, STD, Encoder
from trainers.model import TinyViT

VIT = replace(BASE, pretrain=replace(BASE.pretrain, model=TinyViT()))
METRICS = {"zeroshot/top1": 50.0, "zeroshot/n": 80, "asr/top1": 5.0, "asr/n": 60}
CAPTIONS = ["a banana", "", "a small red circle on a plain background, with more words than the fourteen tokens that the model reads"]


@pytest.fixture
def encoder() -> Encoder:
    """Its weights are drawn; this draw sends the pictures of the world to all four classes."""
    return VIT.pretrain.model.build(0).eval()


@pytest.fixture
def exported(encoder: Encoder, tmp_path: Path) -> Path:
    torch.save(encoder.model.state_dict(), tmp_path / "w.pt")
    export_checkpoint(VIT, Compute(), str(tmp_path / "w.pt"), tmp_path / "out", metrics=METRICS)
    return tmp_path / "out"


def noise(side: int) -> list[Image.Image]:
    draw = np.random.default_rng(side)
    return [Image.fromarray(draw.integers(0, 256, (side, side + 9, 3), dtype=np.uint8)) for _ in range(3)]


def canonical_BHWC(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([canonical(np.asarray(picture), 32) for picture in pictures])


@torch.no_grad()
def test_transformers_computes_the_same_features(encoder: Encoder, exported: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, loading = transformers.CLIPModel.from_pretrained(exported, output_loading_info=True)
    assert not any(loading.values()), "a weight is missing, left over or of another shape"
    pictures, tokens_BL = noise(32), encoder.tokenize(CAPTIONS)
    pixels = transformers.CLIPImageProcessor.from_pretrained(exported)(pictures, return_tensors="pt")
    theirs = model(**pixels, input_ids=tokens_BL)
    image_BD, text_BD = encoder.encode_image(torch.from_numpy(canonical_BHWC(pictures))), encoder.encode_text(tokens_BL)
    padded_BL = tokens_BL.masked_fill(tokens_BL == 0, model.config.text_config.eos_token_id)  # as their own tokenizer pads
    padded = model(**pixels, input_ids=padded_BL)
    for ours_BD, theirs_BD in ((image_BD, theirs.image_embeds), (text_BD, theirs.text_embeds), (text_BD, padded.text_embeds)):
        assert torch.pdist(ours_BD).min() > 0.01, "the features tell the inputs apart"
        assert (ours_BD - theirs_BD).abs().max() < 1e-5


@pytest.mark.parametrize("side", [57, 224])
def test_transformers_resizes_and_crops_pictures_alike(exported: Path, side: int) -> None:
    """Up to a level of 255: torchvision's and Pillow's kernels do not round alike, and which one it takes depends on its version."""
    processor = pytest.importorskip("transformers").CLIPImageProcessor.from_pretrained(exported)
    pixels_BCHW = processor(noise(side), return_tensors="np")["pixel_values"]
    levels_BHWC = 255 * (pixels_BCHW.transpose(0, 2, 3, 1) * np.array(STD) + np.array(MEAN))
    difference_BHWC = np.abs(levels_BHWC - canonical_BHWC(noise(side)))
    assert difference_BHWC.max() < 1.001 and (difference_BHWC > 0.001).mean() < 0.02


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_the_examples_of_the_documents_run(library: str, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(library)
    (example,) = re.findall(rf"```python\n# {library}\n(.*?)```", (ROOT / "docs/checkpoints.md").read_text(), re.S)
    monkeypatch.chdir(exported.parent)
    exported.rename("model")
    noise(57)[0].save("picture.jpg")
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["similarity_BB"].shape == (1, 1) and abs(names["similarity_BB"].item()) < 1


@pytest.fixture
def benchmark(exported: Path, tmp_path: Path) -> SimpleNamespace:
    """CLIP_benchmark's model, tokenizer and 60 pictures: the exported folder and a set in its own layout, by its own loaders."""
    pytest.importorskip("clip_benchmark")
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.models import load_clip

    tiny(train=1, test=60, format="png").write(tmp_path / "world")
    its_default = "laion400m_e32"  # of --pretrained; of no effect on a model from a folder
    model, transform, tokenizer = load_clip("open_clip", f"local-dir:{exported}", its_default, cache_dir="", device="cpu")
    pictures = build_dataset("wds/world", root=str(tmp_path / "world" / "test"), transform=transform)
    batches = DataLoader(pictures.batched(16), batch_size=None)
    return SimpleNamespace(model=model.eval(), tokenizer=tokenizer, pictures=pictures, batches=batches)


@pytest.fixture
def ours(exported: Path, benchmark: SimpleNamespace, tmp_path: Path) -> dict[str, float]:
    """What `cleansweep evaluate --on` finds of the same folder on the same pictures."""
    (record,) = evaluate_on(
        VIT, Compute(store=str(tmp_path / "store")), str(exported), {"world": str(tmp_path / "world" / "test")}, {}, {}
    )
    return record["metrics"]


def test_clip_benchmark_classifies_as_well(benchmark: SimpleNamespace, ours: dict[str, float]) -> None:
    from clip_benchmark.metrics.zeroshot_classification import run_classification, zero_shot_classifier

    names, prompts = benchmark.pictures.classes, benchmark.pictures.templates
    head_DK = zero_shot_classifier(benchmark.model, benchmark.tokenizer, names, prompts, "cpu", amp=False)
    logits_NK, label_N = run_classification(benchmark.model, head_DK, benchmark.batches, "cpu", amp=False)
    found_N = logits_NK.argmax(1)
    assert len(found_N) == ours["n"] == 60 and len(found_N.unique()) == 4, "a model that tells nothing apart would prove nothing"
    recalls = [(found_N[label_N == label] == label).double().mean().item() for label in range(4)]
    assert ours["acc1"] == pytest.approx((found_N == label_N).double().mean().item(), abs=1e-12)
    assert ours["mean_per_class_recall"] == pytest.approx(sum(recalls) / 4, abs=1e-12)


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) >= "2.4.0", reason="CLIP_benchmark 1.6.2's accuracy() fails with numpy from 2.4 on")
def test_clip_benchmark_reports_the_same_accuracy(benchmark: SimpleNamespace, ours: dict[str, float]) -> None:
    from clip_benchmark.metrics.zeroshot_classification import evaluate

    names, prompts = benchmark.pictures.classes, benchmark.pictures.templates
    theirs = evaluate(benchmark.model, benchmark.batches, benchmark.tokenizer, names, prompts, "cpu", amp=False)
    for name in ("acc1", "mean_per_class_recall"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-12)
