"""Dotted paths: what they change, and what a wrong one says."""

from typing import ClassVar

import pytest

from datasets.errors import InputError
from datasets.triggers.base import Trigger
from datasets.triggers.patch import Patch
from orchestrator.experiment.override import from_text, get, override, override_all
from sweeps.quickstart import BASE
from trainers.objectives.contrastive import MMCLSSL


def test_a_path_changes_one_field_and_nothing_else():
    changed = override(BASE, "clean.lr", 5e-4)
    assert changed.clean.lr == 5e-4 and BASE.clean.lr == 1e-3
    assert override(changed, "clean.lr", BASE.clean.lr) == BASE


def test_components_may_be_values():
    assert get(override(BASE, "pretrain.objective", MMCLSSL()), "pretrain.objective") == MMCLSSL()


def changed(path, text):
    return override(BASE, path, from_text(BASE, path, text))


def test_fields_that_only_fit_together_change_together():
    rate = override_all(BASE, {"poison.count": None, "poison.rate": 0.05})
    assert rate.poison.rate == 0.05 and rate.poison.count is None
    with pytest.raises(InputError, match="count"):
        override(BASE, "poison.rate", 0.05)
    deeper = override_all(BASE, {"clean.method": BASE.clean.method, "clean.method.inmodal_weight": 4.0})
    assert deeper.clean.method.inmodal_weight == 4.0


def test_text_from_the_command_line_becomes_the_fields_type():
    assert changed("clean.lr", "1e-3").clean.lr == 1e-3
    assert changed("clean.epochs", "7").clean.epochs == 7
    assert changed("poison.target", "7").poison.target == "7"
    assert changed("data.subset", "none").data.subset is None
    assert changed("views.crop", "(0.9, 1)").views.crop == (0.9, 1.0)
    assert changed("views.augment", "none").views.augment == "none"
    assert changed("pretrain.checkpoint_every_steps", "none").pretrain.checkpoint_every_steps is None
    assert changed("pretrain.sync_batchnorm", "false").pretrain.sync_batchnorm is False


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("clean.lrr", 1, "Did you mean 'lr'"),
        ("clean.method.weight", 1, "inmodal_weight"),
        ("nothing", 1, "its fields are data, views"),
        ("clean.lr", "fast", "accepted: a number"),
        ("clean.epochs", 1.5, "a whole number"),
        ("clean.method", 3, "Method"),
        ("clean.lr", 0, "clean.lr is 0; accepted: a number (above 0)."),
        ("clean.lr", float("inf"), "is inf; accepted: a number (above 0)."),
        ("clean.epochs", 0.0, "clean.epochs is 0.0; accepted: a whole number (at least 1)."),
        ("data.subset", 0, "accepted: a whole number (at least 1) or none."),
        ("data.max_dropped", 1.5, "accepted: a number (at least 0 and at most 1)."),
        ("pretrain.betas", (0.9, 1), "pretrain.betas[1] is 1; accepted: a number (at least 0 and below 1)."),
        ("pretrain.model.image_size", 40, "accepted: a whole number (at least 32 and a multiple of 32)."),
        ("views.augment", "mixup", "views.augment is 'mixup'; accepted: autoaugment, simclr, none."),
        ("views.augment", 3, "3 is a int; accepted: autoaugment, simclr, none."),
        ("views.crop", (0.5,), "2"),
        ("clean.lr.deeper", 1, "has no field"),
    ],
)
def test_mistakes_name_the_path_and_what_is_accepted(path, value, said):
    with pytest.raises(InputError) as error:
        override(BASE, path, value)
    assert path in str(error.value) and said in str(error.value)


def test_a_component_that_is_no_dataclass_is_refused_for_its_fields_would_be_no_part_of_it() -> None:
    class Forgotten(Trigger):
        strength: int = 1
        unit: ClassVar[str] = "pixels"

    class Nothing(Patch):
        unit: ClassVar[str] = "pixels"

    with pytest.raises(InputError, match=r"Forgotten has the field 'strength' but is no dataclass: write @dataclass\(frozen=True"):
        Forgotten()
    assert Nothing(size=4).unit == "pixels"
