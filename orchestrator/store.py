"""The store: one folder an artefact, named by its fingerprint, complete or absent.

`<store>/<stage>/<name>-<fp12>/` holds an artefact and its manifest. A stage works in `<store>/<stage>/.work-<fp12>/`, which
survives a kill so that the next attempt continues there, and is renamed when every file is on disk.
"""

import hashlib
import io
import json
import os
import re
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import InputError
from datasets.storage import sha256 as hash_of
from datasets.storage import sync, write_whole
from orchestrator import locks
from orchestrator.manifest import MANIFEST, checked, commit, damage, digest_of, holds_artefacts, read_manifest, versions, write_manifest

METRICS = "metrics.jsonl"
NOTES = "notes.txt"
"""File of the notes of a stage's processes, which the driver prints. It stays in the finished stage's folder, outside the manifest."""
FAILED = "failed.json"
"""Why the stage failed: {"kind", "error", "rank"}; the kinds are those of `failures`."""
SCRATCH = ("progress.json", FAILED)
"""Files of a working folder that are removed when it is sealed."""


@dataclass(frozen=True)
class Artefact:
    """A finished stage."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]


class Store:
    """A directory that every process of the experiment can see."""

    def __init__(self, root: str | Path):
        if "://" in str(root):
            raise InputError(
                f"store is {root}: it must be a folder that all nodes can see (a local disk or a shared file system); "
                "object storage is accepted for shards, not for the store."
            )
        if {"\0", "\n", "\r"} & set(str(root)) or not is_text(str(root)):
            raise InputError(f"store is {str(root)!r}: accepted is the path of a folder, one line of text.")
        try:
            self.root = Path(root).expanduser().resolve()
            above = next(path for path in (self.root, *self.root.parents) if path.exists())
            a_file = not above.is_dir()
        except (OSError, RuntimeError) as error:  # too long, links in circles, a home of nobody
            why = getattr(error, "strerror", None) or error
            raise InputError(f"store {root} cannot be used: {why}. Give another with --store.") from None
        if a_file:
            raise InputError(f"store {self.root} cannot be: {above} is a file, not a folder. Give another with --store.")

    def prepare(self) -> None:
        """Create the store; InputError if it cannot be written, or its files cannot be locked."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            locks.try_folder(self.root)
        except OSError as error:
            raise InputError(
                f"store {self.root} cannot be written: {error.strerror}. Give another with --store."
            ) from error

    def find(self, stage: str, fingerprint: str) -> Artefact | None:
        """The finished artefact, or None. InputError if its manifest is damaged."""
        for folder in self.folders(stage, fingerprint[:12]):
            artefact = self._read(folder)
            if artefact.fingerprint == fingerprint:
                return artefact
        return None

    def listed(self) -> "Listed":
        """The store as it is now, for many questions in a row."""
        return Listed(self.root)

    def all(self) -> list[Artefact]:
        """Every finished artefact whose manifest is intact, oldest first."""
        found = []
        for folder in self._all_folders():
            with suppress(InputError):
                found.append(self._read(folder))
        return sorted(found, key=lambda artefact: artefact.manifest["created"])

    def damaged(self) -> list[tuple[Path, str]]:
        """(folder, message) of finished artefacts whose manifest is lost or damaged."""
        found = []
        for folder in self._all_folders():
            try:
                self._read(folder)
            except InputError as error:
                found.append((folder, str(error)))
        return found

    def folders(self, stage: str, digits: str) -> list[Path]:
        """Folders of the finished artefacts of a kind whose fingerprint starts with these 12 digits: one at most, but for chance."""
        kind = self.root / stage
        named = [name for name in self.ending(stage, digits) if name.endswith(f"-{digits}") and not name.startswith(".")]
        return [kind / name for name in named if (kind / name).is_dir() and holds_artefacts(kind)]

    def ending(self, stage: str, digits: str) -> list[str]:
        """The names in the folder of a kind that end with these 12 digits, hidden ones too; none where there is no folder."""
        try:
            return sorted(name for name in os.listdir(self.root / stage) if name.endswith(digits))
        except OSError:
            return []

    def _all_folders(self) -> list[Path]:
        """Folders of finished artefacts."""
        found = [path for path in self.root.glob("*/*-*") if path.is_dir() and holds_artefacts(path.parent)]
        return sorted(path for path in found if not path.name.startswith("."))

    def _read(self, folder: Path) -> Artefact:
        return Artefact(folder, read_manifest(folder))

    def work(self, stage: str, fingerprint: str) -> Path:
        """The folder in which an unfinished stage works."""
        return self.root / stage / f".work-{fingerprint[:12]}"

    def lock(self, stage: str, fingerprint: str) -> Path:
        """The lock file, which exists while a process works in that folder."""
        return self.root / stage / f".lock-{fingerprint[:12]}"

    @contextmanager
    def working(self, stage: str, fingerprint: str, wait_s: float = 120) -> Iterator[Path]:
        """The working folder, held by this process alone; a process that dies lets go of it.

        Raises InputError when another process holds it for longer than `wait_s` seconds.
        """
        folder = self.work(stage, fingerprint)
        with self.locked(self.lock(stage, fingerprint), f"{stage} {fingerprint[:12]}", wait_s):
            folder.mkdir(exist_ok=True)
            try:
                yield folder
            except BaseException:
                with suppress(OSError):  # removed only if empty: then there is nothing to continue
                    folder.rmdir()
                raise

    def locked(self, path: Path, what: str, wait_s: float) -> AbstractContextManager[None]:
        """Hold the lock file, which a process that dies lets go of; InputError after `wait_s` seconds of waiting.

        The file says who holds it and is removed while it is held, so that only a killed process leaves one.
        """
        return locks.held(path, what, wait_s)

    def seal(
        self, stage: str, name: str, fingerprint: str, *, config: Any, inputs: dict[str, str], seconds: float, spent: str = "",
        code: Mapping[str, str] | None = None,
    ) -> Artefact:
        """Turn the working folder into the artefact: hash and sync every file, write the manifest, rename.

        spent: pattern of the files that are needed only to continue the stage; they are removed once it is an artefact. code: {class: hash
        of its source} of the user's own classes that it was made with.
        """
        folder = self.work(stage, fingerprint)
        for scratch in SCRATCH:
            (folder / scratch).unlink(missing_ok=True)
        for path in list(folder.rglob(".*")):  # incomplete
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        left_out = set(folder.glob(spent)) if spent else set()
        belonging = [path for path in sorted(folder.rglob("*")) if _belongs(path) and path not in left_out | {folder / NOTES}]
        files = {str(path.relative_to(folder)): sha256(path) for path in belonging}
        fields = {
            "stage": stage,
            "name": name,
            "fingerprint": fingerprint,
            "inputs": inputs,
            "config": config,
            "files": files,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(seconds, 3),
            "commit": commit(),
            "versions": versions(),
            **({"code": dict(code)} if code else {}),
        }
        manifest = write_manifest(folder, fields)
        final = self.root / stage / f"{slug(name)}-{fingerprint[:12]}"
        if final.exists():  # of another fingerprint with the same first digits, or damaged: moved aside
            final.rename(final.with_name(f".replaced-{final.name}-{time.time_ns()}"))
        folder.rename(final)
        for path in left_out:
            (final / path.relative_to(folder)).unlink(missing_ok=True)
        sync(final.parent)
        return Artefact(final, manifest)

    def finish_sealing(self, spent: Mapping[str, str]) -> None:
        """Complete what processes were killed in just after an artefact had its name: remove the files that only an unfinished stage needs,
        and the lock that such a process left. spent: {stage: pattern of these files}.
        """
        for lock in self.root.glob("*/.lock-*"):
            stage, digits = lock.parent.name, lock.name.removeprefix(".lock-")
            for folder in self.folders(stage, digits):
                with suppress(InputError, OSError), self.locked(lock, str(folder), wait_s=0):  # else its maker is at work
                    for path in list(folder.glob(spent[stage])) if spent.get(stage) else []:
                        path.unlink(missing_ok=True)

    def discard(self, stage: str, fingerprint: str) -> None:
        """Remove the working folder of a stage."""
        shutil.rmtree(self.work(stage, fingerprint), ignore_errors=True)


class Listed(Store):
    """A store as it was when it was first asked about each kind: a folder is listed once and a manifest read once, whatever is asked.

    For reading only: what is made afterwards is not found.
    """

    def __init__(self, root: Path):
        self.root = root
        self._names: dict[str, dict[str, list[str]]] = {}
        """Kind → the last 12 characters of a name → the names that end so."""
        self._artefacts: dict[Path, Artefact] = {}

    def ending(self, stage: str, digits: str) -> list[str]:
        if stage not in self._names:
            names = self._names[stage] = {}
            for name in super().ending(stage, ""):
                names.setdefault(name[-12:], []).append(name)
        return self._names[stage].get(digits, [])

    def has(self, path: Path) -> bool:
        """Whether such a file or folder lies in the folder of a kind."""
        return path.name in self.ending(path.parent.name, path.name[-12:])

    def _read(self, folder: Path) -> Artefact:
        if folder not in self._artefacts:
            self._artefacts[folder] = super()._read(folder)
        return self._artefacts[folder]


def is_text(text: str) -> bool:
    """Whether the text can be written as UTF-8; other paths can neither be printed nor stored in a database."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _belongs(path: Path) -> bool:
    """Whether a file of a working folder becomes part of the artefact. A manifest there is left by a killed sealing."""
    return path.is_file() and path.name != MANIFEST and not path.name.endswith(".tmp")


def part(artefact: Artefact, name: str) -> bytes:
    """The content of a small file of the artefact; InputError if it was lost or changed."""
    try:
        data = (artefact.folder / name).read_bytes()
    except FileNotFoundError:
        raise damage(artefact.folder / name) from None
    if hashlib.sha256(data).hexdigest() != artefact.manifest["files"].get(name):
        raise damage(artefact.folder / name)
    return data


def metrics_of(artefact: Artefact) -> list[dict[str, Any]]:
    """The lines of metrics of a finished training; InputError if the file is damaged."""
    return [_line(line) for line in part(artefact, METRICS).splitlines()]


def require_files(artefact: Artefact) -> Artefact:
    """The artefact; InputError if one of its files is missing."""
    for name in missing(artefact):
        raise damage(artefact.folder / name)
    return artefact


def missing(artefact: Artefact) -> list[str]:
    """The artefact's missing files."""
    return [name for name in artefact.manifest["files"] if not (artefact.folder / name).is_file()]


def verify(artefact: Artefact) -> list[str]:
    """Files of the artefact that are missing or whose hash changed."""
    return [
        name
        for name, digest in artefact.manifest["files"].items()
        if not (artefact.folder / name).is_file() or sha256(artefact.folder / name) != digest
    ]


def read_json(path: Path) -> Any:
    """The parsed file, or None if it is missing or unreadable."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def read_failure(folder: Path) -> dict[str, Any] | None:
    """Why the stage of this working folder failed; None if it did not fail, or the reason cannot be read."""
    found = read_json(folder / FAILED)
    whole = isinstance(found, dict) and isinstance(found.get("error"), str) and isinstance(found.get("kind"), str)
    return found if whole else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics that a stage has written; a last line that is not whole yet is left out.

    InputError names the file where a line is not as it was written.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
        return [_line(line) for line in lines if line.endswith(b"\n") and line.strip()]
    except OSError:
        return []
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise InputError(
            f"{path} is not as it was written: run the sweep again, which mends it from the newest checkpoint, or delete its folder to "
            "begin the stage anew."
        ) from None


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write lines of metrics, each with a digest of itself: aside, sync, rename."""
    write_whole(path, b"".join(json.dumps({**line, "digest": digest_of(line)[:16]}).encode() + b"\n" for line in lines))


def _line(text: bytes) -> dict[str, Any]:
    """Parse a line of metrics; raises ValueError or others if it is invalid or was changed."""
    line = json.loads(text)
    digest = line.pop("digest", None)  # older lines have no digest
    if not isinstance(line["epoch"], int) or not isinstance(line.get("metrics", {}), dict):
        raise ValueError("no line of metrics")
    if digest is not None and digest != digest_of(line)[:16]:
        raise ValueError("another digest")
    return line


def write_json(path: Path, value: Any) -> None:
    """Write aside, sync, rename."""
    write_whole(path, json.dumps(value, indent=1, sort_keys=True).encode())


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays of numbers as .npz, aside, sync, rename; equal arrays give equal bytes."""
    assert all(array.dtype.kind in "biuf" for array in arrays.values()), "anything else would be pickled"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
    write_whole(path, content.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; none where there is no readable one. Nothing is unpickled. InputError where the file of a finished stage
    was changed.
    """
    try:
        with np.load(checked(path), allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        return {}


def sha256(path: Path) -> str:
    """Hash of a file's bytes; the file is synced to disk first."""
    sync(path)
    return hash_of(path)


def slug(name: str) -> str:
    """The name in a form that is safe in a folder's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "stage"
