"""pyproject.toml is the one list of dependencies; lock and conda file must agree with it."""

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [
    Requirement(r) for r in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
]
LOCKED = dict(
    (canonicalize_name(name), pinned)
    for name, pinned in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.lock").read_text(), re.M
    )
)


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda r: r.name)
def test_lock_satisfies_pyproject(requirement):
    pinned = LOCKED.get(canonicalize_name(requirement.name))
    assert pinned, f"{requirement.name} is not in requirements.lock"
    assert requirement.specifier.contains(pinned)


def test_lock_pins_every_line_and_torch_exactly():
    lines = [x for x in (ROOT / "requirements.lock").read_text().splitlines() if x and x[0] != "#"]
    assert all(re.fullmatch(r"[\w.-]+==\S+", line) for line in lines)
    assert LOCKED["torch"] == "2.13.0"


@pytest.mark.parametrize("name", ["torch", "transformers", "datasets", "dvc", "papermill"])
def test_running_environment_is_the_locked_one(name):
    assert version(name).split("+")[0] == LOCKED[name]


def test_conda_environment_uses_lock_and_python_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert pip == ["-r requirements.lock", "-e ."]
    python = next(d for d in environment["dependencies"] if str(d).startswith("python="))
    lowest = PROJECT["requires-python"].removeprefix(">=")
    assert python == f"python={lowest}"
