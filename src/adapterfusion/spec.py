"""What one training run is: everything that decides its result, and nothing else.

The training core sees a run as a `RunSpec` in a JSON file; it never reads params.yaml. Two runs with
equal `identity` give equal bytes on one machine, so finished runs are found again by its hash.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from adapterfusion.config import AdapterConfig, FusionConfig, Recipe, build

# The modules that decide what a run computes; another version of them is another run.
CORE = ("adapter", "batches", "evaluate", "fusion", "inject", "metrics", "model", "train")


@dataclass(frozen=True)
class Artifact:
    """A file or folder a run reads, known by its content; the path only says where it lies now."""

    path: str
    sha256: str


@dataclass(frozen=True)
class RunSpec:
    """One run.

    trains: which parameters are trained; all others are frozen.
    adapter: set when an adapter is trained; fusion: set when a fusion is trained.
    sources: source task -> its trained adapter, for fusion, in the order of the attention maps.
    """

    method: str
    task: str
    seed: int
    trains: Literal["head", "backbone", "adapter", "fusion"]
    recipe: Recipe
    batch_size: int
    micro_batch_size: int
    precision: Literal["float32", "bfloat16"]
    weight_decay: float
    clip_norm: float
    backbone: Artifact
    data: Artifact
    adapter: AdapterConfig | None
    fusion: FusionConfig | None
    sources: dict[str, Artifact]

    def identity(self) -> dict[str, Any]:
        """All that decides the result: the spec without paths, which only say where things lie."""
        values = dataclasses.asdict(self)
        for artifact in (values["backbone"], values["data"], *values["sources"].values()):
            del artifact["path"]
        return values

    def key(self) -> str:
        """A short hash of identity and training code: the run's name in the run store."""
        text = json.dumps([self.identity(), list(self.sources), code_sha256()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "RunSpec":
        """Raises ConfigError where the file is not a complete spec."""
        return build(cls, json.loads(path.read_text()), "", path.name)


@cache
def code_sha256() -> str:
    """sha256 over the modules in CORE."""
    digest = hashlib.sha256()
    for name in CORE:
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    return digest.hexdigest()
