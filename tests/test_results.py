"""What is committed under results/ and in README.md agrees with the run records beside it."""

import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from adapterfusion import readme, tables
from adapterfusion.config import load_config
from adapterfusion.methods import CONTROLS, METHODS
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


def test_every_result_is_an_output_of_the_pipeline(profile):
    """Nothing is left over from a study of the same name that had other stages."""
    lock = yaml.safe_load((ROOT / "dvc.lock").read_text())
    outputs = {out["path"] for stage in lock["stages"].values() for out in stage.get("outs", [])}
    files = [p for p in (ROOT / "results" / profile).rglob("*") if p.is_file()]
    paths = [p.relative_to(ROOT) for p in files if p.name != ".gitignore"]
    strays = [p for p in paths if not outputs & {q.as_posix() for q in (p, *p.parents)}]
    assert not strays


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


def scores(config, method: str) -> dict[str, list[float]]:
    """target -> accuracy of each seed, in per cent, straight from the run records."""
    found: dict[str, list[float]] = {}
    for record in load_runs(config, method):
        if record["task"] in config.targets:
            score = record["metrics"]["held_out"]["accuracy"]
            found.setdefault(record["task"], []).append(100 * score)
    return found


def accuracies(config, method: str) -> dict[str, float]:
    """target -> mean accuracy over seeds, in per cent"""
    return {task: float(np.mean(values)) for task, values in scores(config, method).items()}


def test_accuracies_in_the_report_follow_from_run_records(profile):
    config = load_config(ROOT / "profiles" / f"{profile}.yaml")
    page = (ROOT / "results" / profile / "report.html").read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"<br>", " ", page))
    text = re.sub(r"</?small>", "", text)
    shown = re.findall(r"<td>(\d+\.\d\d) ± (\d+\.\d\d)</td>", text)
    records = load_runs(config)
    cells = {
        cell
        for protocol in tables.protocols(config)
        for cell in tables.main_table(config, records, protocol).to_numpy().ravel()
    }
    assert {f"{mean} ± {std}" for mean, std in shown} == {c for c in map(str, cells) if "±" in c}


def test_differences_in_the_verdict_follow_from_run_records(profile):
    """The intervals need the predictions, which are not in git; their middle does not."""
    config = load_config(ROOT / "profiles" / f"{profile}.yaml")
    verdict = (ROOT / "results" / profile / "tables" / "verdict.md").read_text(encoding="utf-8")
    names = {row.title: name for name, row in METHODS.items()}
    found = re.findall(r"\*\*Fusion of ST-A against (.+?)\*\*.*?: ([+-][\d.]+) \[", verdict)
    assert [title for title, _ in found][:2] == ["ST-A", "Full fine-tuning"]
    fusion = accuracies(config, "fusion_st")
    for title, difference in found:
        other = accuracies(config, names[title])
        gains = [fusion[task] - other[task] for task in fusion.keys() & other.keys()]
        assert float(difference) == pytest.approx(np.mean(gains), abs=0.006)


def test_controls_in_the_verdict_follow_from_run_records(profile):
    config = load_config(ROOT / "profiles" / f"{profile}.yaml")
    verdict = (ROOT / "results" / profile / "tables" / "verdict.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"\*\*What it is made of\*\*.*", verdict)
    fusion = accuracies(config, "fusion_st")
    for name in config.controls:
        (said,) = re.findall(rf"{re.escape(CONTROLS[name].title)} ([+-][\d.]+) \[", line)
        control = accuracies(config, name)
        gains = [control[task] - fusion[task] for task in config.control_targets]
        assert float(said) == pytest.approx(np.mean(gains), abs=0.006)
    if "longer" in config.controls:
        (line,) = re.findall(r"\*\*Fusion trained longer\*\*: (.*)", verdict)
        longer = accuracies(config, "longer")
        names = {METHODS["st_adapter"].title: "st_adapter"} | {
            CONTROLS[c].title: c for c in config.controls
        }
        for part in line.split(";"):
            (over,) = re.findall(r"\] over (.+?): ", part)
            other = accuracies(config, names[over])
            said = {task: float(n) for task, n in re.findall(r"(\w+) \(([+-][\d.]+),", part)}
            gains = {task: longer[task] - other[task] for task in config.control_targets}
            assert said == pytest.approx(gains, abs=0.006)
    if "one_seed" in config.controls:
        (line,) = re.findall(r"\*\*What a seed moves\*\*.*", verdict)
        said = re.findall(r"(\d+\.\d\d) (?:points )?of (ST-A|fusion)\b(?! over)", line)
        for (number, _), name in zip(said, ("st_adapter", "fusion_st"), strict=True):
            of = scores(config, name)
            spread = [np.std(of[task], ddof=1) for task in config.control_targets]
            assert float(number) == pytest.approx(np.sqrt(np.mean(np.square(spread))), abs=0.006)


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_are_complete(name):
    assert load_config(ROOT / "profiles" / f"{name}.yaml").profile == name
