"""What is committed under results/ and in README.md agrees with the run records beside it."""

import json
from pathlib import Path

import pytest

from adapterfusion import readme, tables
from adapterfusion.config import load_config
from adapterfusion.runs import load_runs

ROOT = Path(__file__).parents[1]
PROFILES = [p.stem for p in sorted((ROOT / "profiles").glob("*.yaml"))]
IGNORED = (ROOT / ".gitignore").read_text()
COMMITTED = [
    p
    for p in PROFILES
    if (ROOT / "results" / p / "summary.json").is_file() and f"/results/{p}/\n" not in IGNORED
]


@pytest.fixture(params=COMMITTED)
def profile(request):
    return request.param


def test_summary_follows_from_run_records(profile):
    config = load_config(ROOT / "profiles" / f"{profile}.yaml")
    committed = json.loads((ROOT / "results" / profile / "summary.json").read_text())
    assert tables.summary(config, load_runs(config)) == committed


def test_every_run_is_whole(profile):
    config = load_config(ROOT / "profiles" / f"{profile}.yaml")
    for record in load_runs(config):
        assert record["frozen_sha256"]["before"] == record["frozen_sha256"]["after"]
        assert record["config"]["backbone"]["sha256"] == config.backbone.sha256
        assert record["epochs"] and record["versions"]["torch"]


def test_readme_shows_the_results():
    kinds = {kind for kind, _ in readme.marked(ROOT)}
    assert kinds == set(readme.WRITERS), "README shows no results"
    assert readme.render(ROOT) == (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_complete(name):
    assert load_config(ROOT / "profiles" / f"{name}.yaml").profile == name
