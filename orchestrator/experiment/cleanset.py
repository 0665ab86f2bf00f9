"""Which pairs a cleaning is given: clean ones, and victims of the poison plan only if they are asked for. The number is checked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.errors import InputError
from datasets.index.columns import take, without
from datasets.index.pairs import smallest_hashes
from datasets.text import decode_text, lines_of
from orchestrator.experiment.spec import Clean

NAMED = 5
"""How many keys a message names; the rest are counted."""


def read_keys(path: str) -> list[str]:
    """The keys of a text file, one a line, stripped; empty lines are skipped. InputError for duplicates and unreadable files."""
    file = Path(path)
    if not file.is_absolute() or "\0" in path:
        raise InputError(f"clean.keys is {path!r}: give the absolute path, workers have other working folders.")
    try:
        keys = lines_of(decode_text(file.read_bytes(), f"clean.keys {path}"))
    except OSError as error:
        raise InputError(f"clean.keys {path} cannot be read: {error.strerror}.") from error
    if not keys:
        raise InputError(f"clean.keys {path} holds no key; one a line is accepted.")
    seen: set[str] = set()
    if twice := [key for key in keys if key in seen or seen.add(key)]:  # type: ignore[func-returns-value]
        raise InputError(f"clean.keys {path} holds {_named(twice)} more than once; each key may stand there once.")
    return keys


def choose_rows(
    clean: Clean, index: pa.Table, kept: np.ndarray, victims: np.ndarray, negatives: np.ndarray | Sequence[int] = ()
) -> np.ndarray:
    """The rows of the cleaning set, int64, sorted, chosen from the `kept` rows of the index, of which `victims` are in the poison plan.
    Partial `negatives` among those are never chosen.

    A file of keys names them. Without one, they are the `clean.poisons` victims with the smallest hashes and, to make `clean.pairs` in
    all, clean rows: the last ones or those with the smallest hashes. So a larger set contains every smaller one.
    """
    if clean.keys:
        return _rows_of(clean, index, kept, victims)
    free, victims = without(kept, victims), np.setdiff1d(victims, negatives)
    wanted = clean.pairs - clean.poisons
    if clean.poisons > len(victims):
        raise InputError(f"clean.poisons is {clean.poisons}, but the poison plan has only {len(victims)} victims.")
    if wanted > len(free):
        raise InputError(f"clean.pairs asks for {wanted} clean pairs, but only {len(free)} pairs are not poisoned.")
    if clean.choice == "last":
        chosen = free[len(free) - wanted :]
    else:
        chosen = smallest_hashes(index["key"], free, wanted, clean.seed, "clean")
    left = smallest_hashes(index["key"], victims, clean.poisons, clean.seed, "poisons")
    return np.union1d(chosen, left)


def require(rows: np.ndarray, index: pa.Table, victims: np.ndarray, clean: Clean, where: str) -> np.ndarray:
    """The rows, sorted; InputError unless exactly `clean.poisons` of them are victims of the poison plan."""
    found = np.intersect1d(rows, victims)
    if len(found) != clean.poisons:
        keys = take(index["key"], found).to_pylist()
        holds = f"victims of the poison plan ({_named(keys)})" if keys else "no victim of the poison plan"
        raise InputError(
            f"{where} holds {f'{len(found)} ' if keys else ''}{holds}, but clean.poisons is {clean.poisons}; a cleaning set may hold "
            "exactly as many victims as clean.poisons says."
        )
    return np.sort(rows)


def _rows_of(clean: Clean, index: pa.Table, kept: np.ndarray, victims: np.ndarray) -> np.ndarray:
    """The rows whose keys are in the file."""
    keys = read_keys(clean.keys)
    named = np.flatnonzero(pc.is_in(index["key"], value_set=pa.array(keys, pa.string())).to_numpy())
    rows = np.intersect1d(named, kept)
    if len(rows) < len(keys):
        usable = set(take(index["key"], rows).to_pylist())
        missing = [key for key in keys if key not in usable]
        reasons = dict(zip(*(take(index[name], named).to_pylist() for name in ("key", "drop"))))
        why = {key: "unknown" if key not in reasons else reasons[key] or "not in data.subset" for key in missing}
        told = ", ".join(f"{key!r} ({why[key]})" for key in missing[:NAMED])
        raise InputError(
            f"clean.keys {clean.keys}: {len(missing)} of {len(keys)} keys are no usable pair of the data: {told}"
            f"{' …' if len(missing) > NAMED else ''}; only keys of pairs that are trained on are accepted."
        )
    return require(rows, index, victims, clean, f"clean.keys {clean.keys}")


def _named(keys: list[str]) -> str:
    return ", ".join(map(repr, keys[:NAMED])) + (f" and {len(keys) - NAMED} more" if len(keys) > NAMED else "")
