"""What one training run is: everything that decides its result, and nothing else.

The training core sees a run as a `RunSpec` in a JSON file; it never reads params.yaml. Two runs with
equal `identity` give equal bytes on one machine, so finished runs are found again by its hash.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from adapterfusion.config import AdapterConfig, FusionConfig, Recipe, build

# The modules that decide what a run computes; another version of them is another run.
CORE = (
    "adapter",
    "assemble",
    "batches",
    "checkpoint",
    "evaluate",
    "fusion",
    "inject",
    "kernels",
    "metrics",
    "mixers",
    "model",
    "train",
)
JOINT = "joint"  # the name a run on several tasks has in place of a task's


def predictions_file(run_task: str, task: str) -> str:
    """The file of a run's predictions on a task."""
    return "predictions.parquet" if run_task == task else f"predictions-{task}.parquet"


@dataclass(frozen=True)
class Artifact:
    """A file or folder a run reads, known by its content; the path only says where it lies now."""

    path: str
    sha256: str


@dataclass(frozen=True)
class RunSpec:
    """One run.

    task: the one task it trains on, or `joint` where `data` holds several.
    trains: which parameters are trained beside the head; all others are frozen.
    data: task -> its prepared folder.
    adapter: set when adapters are trained; fusion: set when a fusion is trained.
    sources: source task -> its trained adapter, for fusion, in the order of the attention maps.
    start: weights of an earlier run to start from, in place of the backbone's own.
    rows: train on so many of the training rows (and the like share of validation), drawn by seed.
    threads: CPU threads, which decide the last bits.
    """

    method: str
    task: str
    seed: int
    trains: Literal["head", "backbone", "adapter", "fusion"]
    recipe: Recipe
    batch_size: int
    micro_batch_size: int
    precision: Literal["float32", "bfloat16"]
    clip_norm: float
    threads: int
    backbone: Artifact
    data: dict[str, Artifact]
    adapter: AdapterConfig | None = None
    fusion: FusionConfig | None = None
    sources: dict[str, Artifact] = field(default_factory=dict)
    start: Artifact | None = None
    rows: int | None = None

    def identity(self) -> dict[str, Any]:
        """All that decides the result: the spec without paths, which only say where things lie."""
        values = dataclasses.asdict(self)
        artifacts = [values["backbone"], *values["data"].values(), *values["sources"].values()]
        for artifact in [*artifacts, *([values["start"]] if values["start"] else [])]:
            del artifact["path"]
        return values

    def key(self) -> str:
        """A short hash of identity and training code: the run's name in the run store."""
        text = json.dumps(
            [self.identity(), list(self.data), list(self.sources), code_sha256()], sort_keys=True
        )
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
