"""A class for each cleaning picture, looked up by its sample's key, never by its place in a file."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from datasets.errors import InputError
from datasets.storage import write_whole

SCHEMA = pa.schema([("key", pa.string()), ("label", pa.int32())])
CLASSES, NAMES = b"classes", b"names"
"""Entries of the metadata: the number of classes, and their names as a JSON list."""
FILE = "labels.parquet"
"""File name in the folder of the stage that makes the labels."""


class Labels:
    """Labels 0 … classes − 1 by key."""

    def __init__(self, by_key: Mapping[str, int], classes: int, where: str, names: tuple[str, ...] = ()) -> None:
        """`where`: how messages call these labels. `names`: the classes' names; empty if they are not known."""
        self.by_key, self.classes, self.where, self.names = by_key, classes, where, names

    def of(self, keys: Iterable[str]) -> np.ndarray:
        """The keys' labels, int64 [keys]. InputError, naming the key, if one has no label."""
        try:
            return np.array([self.by_key[str(key)] for key in keys], np.int64)
        except KeyError as error:
            raise InputError(f"{self.where} has no label for the sample {error.args[0]!r}.") from None

    def write(self, file: Path) -> None:
        """Write Parquet with columns key and label, and the number and names of the classes in the metadata: to a temporary name, synced,
        then renamed."""
        table = pa.table([pa.array(self.by_key.keys()), pa.array(self.by_key.values(), pa.int32())], schema=SCHEMA)
        content = io.BytesIO()
        metadata = {CLASSES: str(self.classes), **({NAMES: json.dumps(self.names)} if self.names else {})}
        pq.write_table(table.replace_schema_metadata(metadata), content)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content.getvalue())

    @staticmethod
    def read(file: Path) -> Labels:
        """Read a file of `write`. InputError, naming the file, if it cannot be read, has other columns, a key twice or a label that is not
        a class."""
        try:
            table = pq.read_table(file)
        except (OSError, pa.ArrowInvalid) as error:
            raise InputError(f"the labels {file} cannot be read: {str(error).splitlines()[0]}") from error
        metadata = table.schema.metadata or {}
        classes, names = int(metadata.get(CLASSES, b"0")), json.loads(metadata.get(NAMES, b"[]"))
        if not table.schema.equals(SCHEMA) or not classes:
            raise InputError(f"the labels {file} are no Parquet of {', '.join(SCHEMA.names)} with the number of classes in its metadata.")
        by_key = dict(zip(table["key"].to_pylist(), table["label"].to_pylist()))
        if len(by_key) < len(table):
            raise InputError(f"the labels {file} hold {len(table)} rows for {len(by_key)} keys; each key may stand there once.")
        for key, label in by_key.items():
            if label is None or not 0 <= label < classes:
                raise InputError(f"the labels {file} give {key!r} the label {label}; accepted are 0 to {classes - 1}.")
        return Labels(by_key, classes, f"the labels {file}", tuple(names))
