"""The real pipeline, once: `dvc repro` of the smoke profile in a clone, and what reruns after a change.

One test walks through the whole story, because each step costs the state the step before left.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from adapterfusion.methods import METHODS

ROOT = Path(__file__).parents[1]


def dvc(clone: Path, *arguments: str) -> str:
    """Run dvc in the clone as a user would; its output, or a failure that shows it."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "PYTEST_"))}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["HF_HUB_OFFLINE"] = "1"
    result = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def stages_run(output: str) -> set[str]:
    """The names of the stages that dvc repro executed, without their matrix part."""
    return set(re.findall(r"Running stage '(\w+)", output))


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of the tracked and new files, with the smoke profile in place and no results."""
    target = tmp_path_factory.mktemp("clone") / "project"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        if name.startswith("results/") or name == "dvc.lock" or not (ROOT / name).is_file():
            continue
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target / name)
    shutil.copy(target / "profiles" / "smoke.yaml", target / "params.yaml")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "clone"]):
        subprocess.run([*git, *command], cwd=target, check=True)
    return target


def edit_params(clone: Path, section: str, key: str, value: object) -> None:
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params[section][key] = value
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def test_pipeline(clone):
    output = dvc(clone, "repro")
    assert stages_run(output) == {
        *("code", "data", "overview", "own_task", "forecast", "train", "finetuning", "adapters"),
        *("multitask", "fusion", "probes", "evaluation", "attention", "ablations", "paper"),
        *("start", "report"),
    }
    results = clone / "results" / "smoke"
    rows = json.loads((results / "summary.json").read_text())["rows"]
    assert {r["method"] for r in rows} == set(METHODS)
    verdicts = {c["verdict"] for c in json.loads((results / "claims.json").read_text())["claims"]}
    assert verdicts <= {"reproduced", "contradicted", "not distinguishable", "not tested"}
    assert all(len(r["scores"]) == r["n_seeds"] for r in rows)
    assert (results / "report.html").read_text().count("<table") >= 3
    weights = results / "weights" / "full" / "uses" / "seed1" / "model.safetensors"
    assert weights.stat().st_nlink == 3, "not one file for run store, results and DVC's cache"
    for path in results.glob("notebooks/*.ipynb"):
        text = path.read_text()
        assert str(clone) not in text, f"{path.name} holds an absolute path"
        assert "papermill" not in text and "step/s" not in text, f"{path.name} is not canonical"

    # nothing changed: nothing runs
    assert stages_run(dvc(clone, "repro")) == set()

    # prose of a notebook: only the export of code cells
    path = clone / "notebooks" / "05_fusion.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += "\n\nOne more sentence."
    nbformat.write(notebook, path)
    assert stages_run(dvc(clone, "repro")) == {"code"}

    # a fusion parameter: fusion and what reads it, not the adapters
    frozen = (
        results / "weights" / "st_adapter" / "uses" / "seed1" / "model.safetensors"
    ).read_bytes()
    edit_params(clone, "fusion", "variant", "static")
    assert stages_run(dvc(clone, "repro")) == {
        *("forecast", "train", "fusion", "probes", "ablations", "evaluation", "attention"),
        *("paper", "start", "report"),
    }
    after = (
        results / "weights" / "st_adapter" / "uses" / "seed1" / "model.safetensors"
    ).read_bytes()
    assert frozen == after
