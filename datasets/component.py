"""Base of everything whose fields are hyper-parameters."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Component:
    """A frozen dataclass that is its own configuration.

    Its class and fields are its identity: `orchestrator.fingerprint` encodes them as canonical JSON. Fields are numbers,
    strings, booleans, None, other components, or tuples of those.
    """
