"""The audit that asks whether explanations point at the trigger, on models of which one knows whether they use it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets.errors import InputError
from orchestrator.experiment.fingerprint import fingerprint
from tests.unit.trainers.audit.explain import toys
from trainers.audit.base import Findings, Pictures
from trainers.audit.explain.integrated import IntegratedGradients
from trainers.audit.explain.lime import LIME
from trainers.audit.explain.localisation import found
from trainers.audit.explain.overlay import bordered, enlarged, heated
from trainers.audit.explain.rollout import AttentionRollout
from trainers.audit.localisation import Localisation
from trainers.model import TinyViT

AUDIT = Localisation(explainer=LIME(samples=500), n=24)
PICTURES = toys.pictures(40)


@pytest.fixture(scope="module")
def seen() -> dict[str, Findings]:
    """With the backdoor and without."""
    return {name: AUDIT.run(toys.subject(make(), PICTURES)) for name, make in (("with", toys.backdoored), ("without", toys.ignorant))}


def test_the_heat_is_on_the_trigger_where_the_model_uses_it_and_nowhere_else(seen: dict[str, Findings]) -> None:
    with_it, without = seen["with"].metrics, seen["without"].metrics
    base = "explain/lime-grid-8"
    area = with_it[f"{base}/area"]
    assert 1 < area <= 100 / 64 + 1e-9, "a few of the trigger's pixels may equal the picture's"
    assert with_it[f"{base}/asr"] == 100 and without[f"{base}/asr"] < 50
    assert with_it[f"{base}/mass"] > 15 and with_it[f"{base}/pointing"] > 90 and with_it[f"{base}/lift"] > 10
    assert with_it[f"{base}/mass_low"] > 5 * without[f"{base}/mass_high"]
    for metrics, place in ((without, base), (without, f"{base}/clean"), (with_it, f"{base}/clean")):
        assert metrics[f"{place}/mass"] < 2 * area and metrics[f"{place}/lift"] < 2 and metrics[f"{place}/pointing"] < 30
    assert with_it[f"{base}/mass"] < with_it[f"{base}/ceiling_mass"] < 60, "the trigger lies across segments"
    assert with_it[f"{base}/iouk"] < with_it[f"{base}/ceiling_iou"] and with_it[f"{base}/iou1"] < with_it[f"{base}/ceiling_iou1"]
    assert with_it[f"{base}/iouk"] > 5 * without[f"{base}/iouk"] and with_it[f"{base}/r2"] > 0.3
    assert 100 / 64 < with_it[f"{base}/pointing_chance"] < 100 * 4 / 64


def test_metrics_are_the_means_of_the_rows(seen: dict[str, Findings]) -> None:
    metrics, rows = seen["with"].metrics, {name: np.array(values) for name, values in seen["with"].rows.items()}
    assert {len(values) for values in rows.values()} == {48} and metrics["explain/lime-grid-8/n"] == 24
    assert set(rows["checkpoint"]) == {"abc"} and set(rows["target"]) == {2} and set(rows["explainer"]) == {"LIME grid 8"}
    for mode, place in (("triggered", "explain/lime-grid-8"), ("clean", "explain/lime-grid-8/clean")):
        of = rows["mode"] == mode
        assert of.sum() == 24 and len(set(rows["key"][of])) == 24
        for name, unit in (("mass", 100), ("lift", 1), ("iou1", 100), ("iouk", 100), ("pointing", 100), ("r2", 1)):
            value = unit * rows[name][of]
            assert metrics[f"{place}/{name}"] == pytest.approx(value.mean())
            assert name != "r2" or metrics[f"{place}/r2_n"] == 24
            if name in ("lift", "r2"):
                half = 2.0686576 * value.std(ddof=1) / np.sqrt(24)  # Student's t, 23 degrees of freedom, 97.5 %
                assert metrics[f"{place}/{name}_low"] == pytest.approx(value.mean() - half, rel=1e-6)
                assert metrics[f"{place}/{name}_high"] == pytest.approx(value.mean() + half, rel=1e-6)
        assert 0 <= metrics[f"{place}/mass_low"] <= metrics[f"{place}/mass"] <= metrics[f"{place}/mass_high"] <= 100
    at = int(np.flatnonzero(rows["mode"] == "triggered")[5])
    place = PICTURES.keys.index(str(rows["key"][at]))
    picture_CHW = torch.from_numpy(PICTURES.triggered_NHWC[place] / 255).permute(2, 0, 1)
    told = AUDIT.explainer.explain(toys.backdoored(), None, picture_CHW, 2, str(rows["key"][at]))
    assert rows["mass"][at] == pytest.approx(found(told.heat_HW, PICTURES.trigger_NHW[place], told.segment_HW).mass, rel=1e-6)
    assert rows["area"][at] == PICTURES.trigger_NHW[place].mean() and rows["label"][at] == place % 5 != 2


def test_order_and_company_of_the_pictures_change_nothing(seen: dict[str, Findings]) -> None:
    audit = replace(AUDIT, n=3)
    first = audit.run(toys.subject(toys.backdoored(), PICTURES))
    again = audit.run(toys.subject(toys.backdoored(), PICTURES.part(np.arange(39, -1, -1))))
    assert first.metrics == again.metrics and first.rows == again.rows
    few, many = (dict(zip(zip(one.rows["key"], one.rows["mode"]), one.rows["mass"])) for one in (first, seen["with"]))
    assert few.items() <= many.items()
    assert set(replace(audit, seed=1).run(toys.subject(toys.backdoored(), PICTURES)).rows["key"]) != set(first.rows["key"])


def test_the_gallery(seen: dict[str, Findings]) -> None:
    gallery = seen["with"].gallery
    assert list(gallery) == ["clean", "triggered", "segments", "heat, clean", "heat, triggered"]
    assert {(images.shape, images.dtype) for images in gallery.values()} == {((4, 128, 128, 3), np.dtype(np.uint8))}
    keys = seen["with"].rows["key"][:8:2]
    assert (gallery["clean"][1][::4, ::4] == PICTURES.image_NHWC[PICTURES.keys.index(keys[1])]).all()
    assert replace(AUDIT, n=1, shown=0).run(toys.subject(toys.backdoored(), PICTURES)).gallery == {}


def test_other_explainers() -> None:
    by_gradient = Localisation(explainer=IntegratedGradients(baseline="mean", steps=8), n=4)
    metrics = by_gradient.run(toys.subject(toys.backdoored(), PICTURES)).metrics
    base = "explain/integrated-gradients-mean"
    assert metrics[f"{base}/mass"] > 40 and metrics[f"{base}/pointing"] == 100 and metrics[f"{base}/ceiling_mass"] == 100
    assert f"{base}/iou1" not in metrics and f"{base}/r2" not in metrics and f"{base}/r2_n" not in metrics and f"{base}/iouk" in metrics
    subject = toys.subject(toys.backdoored(), PICTURES)
    vit = replace(subject, encoder=TinyViT(vision_layers=1, vision_width=12, vision_heads=2, text_width=16).build(0))
    found_here = Localisation(explainer=AttentionRollout(), n=2).run(vit)
    assert np.isfinite(found_here.metrics["explain/attention-rollout/mass"]) and "explain/attention-rollout/iou1" in found_here.metrics
    with pytest.raises(InputError, match="AttentionRollout.*ModifiedResNet"):
        Localisation(explainer=AttentionRollout(), n=2).run(subject)
    assert fingerprint(by_gradient) != fingerprint(AUDIT) and (AUDIT.label, AUDIT.group) == ("LIME grid 8", "explanations")


def test_a_model_without_any_heat_says_so() -> None:
    same = toys.ignorant()
    same._logits = lambda picture_BCHW, _: 0 * toys.colours(picture_BCHW)
    metrics = replace(AUDIT, n=3).run(toys.subject(same, PICTURES)).metrics
    base = "explain/lime-grid-8"
    assert metrics[f"{base}/mass_n"] == 0 and f"{base}/mass" not in metrics and f"{base}/r2" not in metrics
    assert metrics[f"{base}/pointing"] == metrics[f"{base}/iou1"] == metrics[f"{base}/iouk"] == 0


def test_what_cannot_be_localised() -> None:
    subject = toys.subject(toys.backdoored(), PICTURES)
    whole = replace(PICTURES, triggered_NHWC=255 - PICTURES.image_NHWC)
    found_here = AUDIT.run(replace(subject, pictures=whole))
    assert found_here.metrics == {"explain/lime-grid-8/n": 24, "explain/lime-grid-8/area": 100}
    assert "by definition" in found_here.notes[0] and not found_here.rows
    with pytest.raises(InputError, match="no trigger on pictures"):
        AUDIT.check(5, False)
    with pytest.raises(InputError, match="at least 2"):
        AUDIT.check(1, True)
    AUDIT.check(5, True)
    for wrong, words in (
        (replace(subject, target=None), "single target"),
        (replace(subject, pictures=replace(PICTURES, triggered_NHWC=None)), "no trigger"),
        (replace(subject, pictures=replace(PICTURES, triggered_NHWC=PICTURES.image_NHWC)), "no triggered pictures"),
        (replace(subject, pictures=PICTURES.part(PICTURES.label_N == 2)), "no triggered pictures"),
    ):
        with pytest.raises(InputError, match=words):
            AUDIT.run(wrong)


def test_notes_say_when_numbers_mean_little(seen: dict[str, Findings]) -> None:
    assert len(seen["with"].notes) == 1, "of the colours alone"
    wide = replace(AUDIT, n=3, explainer=LIME(across=4, samples=100)).run(toys.subject(toys.backdoored(), PICTURES)).notes
    assert any("coarse" in note for note in wide) and not any("R²" in note for note in wide)
    weak = toys.ignorant()
    weak._logits = lambda picture_BCHW, _: 9 * torch.sin(900 * toys.colours(picture_BCHW))
    notes = replace(AUDIT, n=3, explainer=LIME(across=4)).run(toys.subject(weak, PICTURES)).notes
    assert any("explains little" in note for note in notes)


def test_overlays() -> None:
    image_HW3 = np.full((4, 4, 3), 100, np.uint8)
    heat_HW = np.zeros((4, 4))
    heat_HW[0, 0], heat_HW[3, 3] = 2.0, -1.0
    picture = heated(image_HW3, heat_HW)
    assert (picture[1, 1] == 100).all() and picture.dtype == np.uint8
    assert picture[0, 0].tolist() == [224, 52, 20] and picture[3, 3].tolist() == [60, 96, 162]
    assert (heated(image_HW3, np.zeros((4, 4))) == 100).all()
    edges = bordered(image_HW3, np.array([[0, 0, 1, 1]] * 4))
    assert (edges[:, 1] == 178).all() and (edges[:, [0, 2, 3]] == 100).all()
    assert enlarged(heat_HW, 10).shape == (12, 12) and enlarged(heat_HW, 4).shape == (4, 4)


def test_pictures_are_left_as_they_are() -> None:
    before: Pictures = toys.pictures(8)
    subject = toys.subject(toys.backdoored(), before)
    weights = {name: value.clone() for name, value in subject.encoder.state_dict().items()}
    replace(AUDIT, n=2).run(subject)
    assert (before.image_NHWC == toys.pictures(8).image_NHWC).all() and (before.triggered_NHWC == toys.pictures(8).triggered_NHWC).all()
    assert all(torch.equal(value, weights[name]) for name, value in subject.encoder.state_dict().items())
