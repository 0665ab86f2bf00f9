"""The manifest of a finished stage: its identity, its files, and a hash of the manifest itself."""

import hashlib
import json
import os
import re
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from datasets.errors import InputError
from datasets.storage import known_sha256, write_whole

MANIFEST = "manifest.json"
FORMAT = 2
"""Manifests of format 1 hold no digest of themselves."""
FIELDS = {
    "format": int, "stage": str, "name": str, "fingerprint": str, "inputs": dict, "config": object, "files": dict, "created": str,
    "seconds": (int, float), "commit": str, "versions": dict,
}  # fmt: skip
OURS = (
    "world", "index", "testset", "patch", "targets", "poison", "pretrain", "scores", "kept", "cleanset", "labels", "clean", "measure",
    "audit", "sweep",
)  # fmt: skip
"""The kinds of `orchestrator.stages`, in the order in which they are made."""
KINDS = list(OURS)
"""Folders of a store that hold artefacts: the kinds of `orchestrator.stages`, in the order in which they are made, then the kinds of users'
own classes, which are added here when they are defined."""
_NAME = re.compile(r"[^.].*-[0-9a-f]{12}")
_DEPTH = 4
"""The largest depth of a file below its artefact's folder."""


def holds_artefacts(folder: Path) -> bool:
    """Whether a folder of a store belongs to a kind: a known one, or one that the artefacts in it name (made by a class that is not
    imported here)."""
    if folder.name not in KINDS:
        named = (_stage(path) for path in folder.glob(f"*-*/{MANIFEST}"))
        if folder.name not in named:
            return False
        KINDS.append(folder.name)
    return True


def _stage(manifest: Path) -> str:
    try:
        return str(json.loads(manifest.read_bytes())["stage"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return ""


def write_manifest(folder: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Write the manifest of an artefact with its digest; returns the manifest."""
    plain = json.loads(json.dumps({**fields, "format": FORMAT}))
    manifest = {**plain, "digest": digest_of(plain)}
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artefact. InputError names its path if it is missing or was changed."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except OSError:
        raise damage(path) from None
    except (ValueError, RecursionError):
        raise damage(path, "cannot be read as JSON") from None
    if not isinstance(manifest, dict):
        raise damage(path, "holds no fields")
    for name, kind in FIELDS.items():
        if name not in manifest:
            raise damage(path, f"lacks the field {name}")
        if not isinstance(manifest[name], kind):  # type: ignore[arg-type]
            raise damage(path, f"has a wrong value in the field {name}")
    for name, digest in manifest["files"].items():
        if not isinstance(digest, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise damage(path, f"has a wrong value for the file {name}")
    if manifest["format"] != 1 and manifest.pop("digest", None) != digest_of(manifest):
        raise damage(path, "is not as it was written")
    return manifest


def digest_of(value: dict[str, Any]) -> str:
    """SHA-256 of a JSON object, independent of its layout."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def checked(path: str | Path) -> Path:
    """The path, after checking that its bytes are those that its stage wrote; for a folder those of every file in it. Everything that is
    computed from a file of an artefact opens it through this, in each process. A file is hashed once a process (1 GB/s); paths that lie in
    no artefact pass. InputError names the file that is lost or changed.
    """
    place = artefact_of(path)
    if place is None:
        return Path(path)
    folder, name = place
    files = read_manifest(folder)["files"]
    own = [file for file in files if name == "." or file == name or file.startswith(f"{name}/")]
    if not own and name != "." and (folder / name).exists():
        raise damage(folder / name, "is none of the files that its stage wrote")
    for file in own:
        check_file(folder / file, files[file])
    return Path(path)


def check_file(path: Path, digest: str) -> None:
    """InputError unless the file has that hash."""
    try:
        if known_sha256(path) == digest:
            return
    except FileNotFoundError:
        pass
    except OSError as error:
        raise damage(path, f"cannot be read ({error.strerror})") from error
    raise damage(path)


def artefact_of(path: str | Path) -> tuple[Path, str] | None:
    """(artefact, name within it) of a path, also through links; None if the path lies in no artefact.

    An artefact is a folder `<stage>/<name>-<12 digits>` with a manifest, or one that lost it and lies in a store.
    """
    if "://" in str(path):
        return None
    given = Path(path).absolute()
    for place in (Path(os.path.realpath(path)), *([] if ".." in given.parts else [given])):  # a file may be a link to another disk
        for folder in (place, *place.parents)[: _DEPTH + 1]:
            if _NAME.fullmatch(folder.name) and (_is_whole(folder) or (folder.parent.name in KINDS and _was_one(folder))):
                return folder, str(place.relative_to(folder))
    return None


def _was_one(folder: Path) -> bool:
    """Whether a folder with a lost or damaged manifest is an artefact: it has a manifest file, or folders beside it have one."""
    return (folder / MANIFEST).exists() or any(_is_whole(path.parent) for path in folder.parent.parent.glob(f"*/*-*/{MANIFEST}"))


def _is_whole(folder: Path) -> bool:
    """Whether the folder has the manifest of an artefact."""
    return _stage(folder / MANIFEST) in (*KINDS, folder.parent.name)


def damage(path: Path, what: str = "") -> InputError:
    """The error for a lost or damaged file of an artefact."""
    what = what or ("is not as its stage wrote it" if path.exists() else "is missing")
    return InputError(
        f"{path} {what}: this finished stage is damaged. `cleansweep show --verify --store …` lists all damage; delete the folder to make "
        "it anew."
    )


@cache
def commit() -> str:
    """The project's git commit, with a + when the tree has changes; outside a checkout CLEANSWEEP_COMMIT, or nothing."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        return git("rev-parse", "HEAD").strip() + ("+" if git("status", "--porcelain").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("CLEANSWEEP_COMMIT", "")


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that can change a result."""
    names = ("torch", "torchvision", "open_clip_torch", "ray", "mlflow", "numpy", "pyarrow", "pillow", "simplejpeg")
    return {name: metadata.version(name) for name in names}
