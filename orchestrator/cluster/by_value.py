"""Modules that workers cannot import, such as a sweep's own file: they are sent along by value. This module does not import Ray."""

from __future__ import annotations

import sys
from types import ModuleType

_WAITING: list[ModuleType] = []


def send_along(module: ModuleType) -> None:
    """Let Ray send what the module defines by value; from now on, or from when Ray is imported."""
    _WAITING.append(module)
    if "ray" in sys.modules:
        tell_ray()


def tell_ray() -> None:
    """Tell Ray of the modules that were noted before it was imported."""
    from ray import cloudpickle

    while _WAITING:
        cloudpickle.register_pickle_by_value(_WAITING.pop())
