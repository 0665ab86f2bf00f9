"""Base of triggers made of a file. The bytes identify the file, wherever it lies."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from datasets.component import NEUTRAL
from datasets.errors import InputError
from datasets.storage import known_sha256
from datasets.triggers.base import Trigger


@dataclass(frozen=True, kw_only=True)
class FileTrigger(Trigger):
    """A trigger made of a file. The file's sha256 is part of the identity, its path is not."""

    path: str = field(metadata=NEUTRAL)
    """Absolute path of the file, on every machine that stamps pictures."""
    sha256: str = ""
    """Hash of the file's bytes, 64 hexadecimal digits; empty: that of the file as it is now."""

    def __post_init__(self) -> None:
        if not os.path.isabs(self.path):
            raise InputError(f"trigger.path is {self.path!r}: give the absolute path, workers have other working folders.")
        if not self.sha256:
            object.__setattr__(self, "sha256", self._found())
        if len(self.sha256) != 64 or not set(self.sha256) <= set("0123456789abcdef"):
            raise InputError(f"trigger.sha256 is {self.sha256!r:.80}; accepted: 64 hexadecimal digits, or nothing.")

    def whole(self) -> str:
        """The path. Raises InputError if the file cannot be read or its hash is not `sha256`."""
        actual = self._found()
        if actual != self.sha256:
            raise InputError(
                f"trigger.path {self.path} has the sha256 {actual[:12]}…, but trigger.sha256 is {self.sha256[:12]}…: it is another file."
            )
        return self.path

    def _found(self) -> str:
        try:
            return known_sha256(self.path)
        except OSError as error:
            raise InputError(f"trigger.path {self.path} cannot be read: {error.strerror or error}.") from None
