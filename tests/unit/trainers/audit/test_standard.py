"""The names of the command line: what each stands for, and that none is left out."""

from __future__ import annotations

from trainers.audit.defences.base import Defence
from trainers.audit.standard import Asked, named_audits

ASKED = Asked(eps=(1 / 255, 2 / 255, 4 / 255), size=32, classes=8)


def test_every_defence_is_tried_as_a_filter_of_triggers():
    tried = [type(audit.defence) for audit in named_audits(("filters",), ASKED)]  # type: ignore[attr-defined]
    shipped = {one for one in Defence.__subclasses__() if one.__module__.startswith("trainers.")}
    assert set(tried) == shipped and len(tried) == len(shipped) == 6
