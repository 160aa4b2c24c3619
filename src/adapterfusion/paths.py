"""Where things lie. Every path of the project comes from here, whatever folder one starts in.

Papermill's kernel starts in the caller's folder, Jupyter's in the notebook's: both find the same root.
"""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

MARKER = "dvc.yaml"


def find_root(start: Path | None = None) -> Path:
    """The project's top folder: `DVC_ROOT` inside a DVC stage, else the nearest parent with dvc.yaml.

    Raises:
        FileNotFoundError: no parent of `start` holds a dvc.yaml.
    """
    if "DVC_ROOT" in os.environ:
        return Path(os.environ["DVC_ROOT"])
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / MARKER).is_file():
            return folder
    raise FileNotFoundError(
        f"no {MARKER} in {start} or above it: run from inside a clone of the project"
    )


class Paths:
    """The folders of one profile. Tracked results and heavy files are kept apart, as DVC wants it."""

    def __init__(self, profile: str, root: Path | None = None):
        self.root = root or find_root()
        self.profile = profile
        self.results = self.root / "results" / profile
        self.runs = self.results / "runs"  # run.json files, in git
        self.weights = self.results / "weights"  # safetensors and predictions, in the DVC cache
        self.notebooks = self.results / "notebooks"
        self.tables = self.results / "tables"
        self.figures = self.results / "figures"
        self.prepared = self.root / "data" / "prepared" / profile
        self.scratch = self.root / "build" / "runs"  # checkpoints and finished runs, by content

    def run(self, method: str, task: str, seed: int) -> Path:
        return self.runs / method / task / f"seed{seed}"

    def run_weights(self, method: str, task: str, seed: int) -> Path:
        return self.weights / method / task / f"seed{seed}"

    def relative(self, path: Path) -> str:
        """A path as it may be printed or stored: relative to the root."""
        return Path(path).resolve().relative_to(self.root.resolve()).as_posix()


@contextmanager
def atomic_write(path: Path):
    """Yield a temporary path beside `path`; it takes its place only when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
