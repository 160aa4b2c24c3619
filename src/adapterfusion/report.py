"""One self-contained page for a profile: what was asked, what came out, and from which runs.

python -m adapterfusion.report            # write results/<profile>/report.html
python -m adapterfusion.report --print    # name the report and print the main table
"""

import argparse
import base64
import json
import re
import sys
import time
from pathlib import Path

import jinja2
import pandas as pd

from adapterfusion import claims, comparisons, facts, findings, tables
from adapterfusion.bundled import transfer_graph
from adapterfusion.config import Config, load_config
from adapterfusion.launch import workers
from adapterfusion.paths import Paths, atomic_write, find_root
from adapterfusion.plans import Planner
from adapterfusion.runs import load_runs, of_study

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>AdapterFusion, reproduced: {{ profile }}</title>
<style>
  body { font: 16px/1.55 Georgia, serif; color: #1a1a1a; max-width: 68rem; margin: 0 auto; padding: 1.5rem; }
  h1, h2 { font-family: system-ui, sans-serif; line-height: 1.2; }
  h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font: 13px/1.35 system-ui, sans-serif; }
  th, td { padding: .25rem .5rem; text-align: right; white-space: nowrap; }
  th { white-space: normal; vertical-align: bottom; }
  th:first-child, td:first-child { text-align: left; }
  td small { color: #555; }
  thead th { border-bottom: 2px solid #1a1a1a; }
  .total tbody tr:last-child td { border-top: 1px solid #1a1a1a; }
  .claims td { white-space: normal; text-align: left; vertical-align: top; min-width: 6rem; }
  .claims td:nth-child(2) { min-width: 18rem; }
  .rerun td, .rerun th { text-align: left; }
  .note { font-size: .9rem; color: #555; }
  img { max-width: 100%; height: auto; }
  code { font-size: .9em; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>AdapterFusion, reproduced <span class="note">profile {{ profile }}</span></h1>
<p>Can a task profit from adapters that were trained for other tasks, if neither they nor the
backbone may change? Fusion learns, for each layer and token, which adapters to use.</p>
<h2>What came out</h2>
{{ verdict }}
{{ graph }}
{% for protocol, text, table in tables %}
<h2>Accuracy, {{ protocol }} protocol</h2>
<div class="scroll total">{{ table }}</div>
<p class="note">{{ text }}</p>
{% endfor %}
{{ figure("evaluation/relative_to_full") }}
<h2>Method against method</h2>
<div class="scroll">{{ pairs }}</div>
<p class="note">Points of accuracy, paired by seed and dev row, with 95 % bootstrap intervals; a target
counts as higher or lower after Holm's correction over the targets, and as neither where it is not
distinguishable. Too few: with five targets or fewer Wilcoxon's test cannot reach 0.05.</p>
<h2>Fusion against the single adapter, target by target</h2>
<div class="scroll total">{{ paired }}</div>
{{ figure("evaluation/ranks") }}
<h2>The paper's claims</h2>
{{ claims_summary }}
<div class="scroll claims">{{ claims }}</div>
{% if controls %}
<h2>What the gain is made of</h2>
<p>Each control changes one thing of fusion and keeps adapters, seeds and protocol.</p>
<div class="scroll">{{ controls }}</div>
{{ figure("ablations/controls") }}
{% endif %}
{{ figure("ablations/low_resource") }}
{{ figure("attention/attention_layers") }}
{{ figure("attention/faithfulness") }}
{{ figure("ablations/pruning") }}
{{ figure("multitask/forgetting") }}
<h2>What it cost</h2>
<div class="scroll">{{ costs }}</div>
<p class="note">Means per run, on {{ devices }}. Evaluation is of all epochs, and for fusion one pass more,
which records attention. Peak memory is that of the process, which may have trained other runs before.</p>
{{ figure("evaluation/cost") }}
<h2>What it was expected to cost</h2>
<div class="scroll total">{{ forecast }}</div>
<p class="note">Minutes of the whole machine, runs side by side. The forecast is arithmetic and
a few seconds of calibration; it sees no run (<code>python -m adapterfusion.forecast</code>).</p>
<h2>Deviations from the paper</h2>
{{ deviations }}
<h2>Where the numbers come from</h2>
<p>{{ failures }} Each run's record is
<code>results/{{ profile }}/runs/&lt;method&gt;/&lt;task&gt;/seed&lt;n&gt;/run.json</code>; the notebooks
beside it, <code>results/{{ profile }}/notebooks/</code>, show every step. Backbone
<code>{{ backbone.name }}</code>, sha256 <code>{{ backbone.sha256 }}</code>. Training
and evaluating all {{ runs }} runs, controls included, took {{ hours }} hours of one process.</p>
<table class="rerun">
<tr><th>to repeat</th><th>command</th></tr>
<tr><td>everything</td><td><code>make profile NAME={{ profile }} &amp;&amp; make reproduce</code></td></tr>
<tr><td>one notebook's runs</td><td><code>dvc repro -s -f fusion@{{ profile }}-{{ target }}</code></td></tr>
<tr><td>an ablation</td><td><code>dvc exp run -S fusion.penalty=0.0</code></td></tr>
</table>
</body>
</html>
"""

TITLES = {
    "evaluation/relative_to_full": "Relative to full fine-tuning (the paper's Figure 3)",
    "evaluation/ranks": "Average rank over the targets",
    "evaluation/cost": "Accuracy against cost",
    "ablations/controls": "Controls against fusion",
    "ablations/low_resource": "With less training data",
    "ablations/pruning": "With fewer adapters per layer",
    "attention/attention_layers": "Where fusion looks (the paper's Figures 4 and 6)",
    "attention/faithfulness": "Does attention say what matters?",
    "multitask/forgetting": "What sequential transfer forgets",
}


def _html(table: pd.DataFrame) -> str:
    return table.reset_index().to_html(index=False, border=0, escape=True)


def _stacked(table: str) -> str:
    """Spreads below their means, so that all methods fit on the page."""
    return re.sub(r" ± ([\d.]+)", r"<br><small>± \1</small>", table)


def _paragraphs(markdown: str) -> str:
    """The little markdown that findings use, as HTML."""
    from nbconvert.filters import markdown2html

    return markdown2html(markdown)


def build(config: Config) -> str:
    """The page as one string of HTML, figures included.

    Raises:
        FileNotFoundError: the evaluation has not been run.
    """
    paths = Paths(config.profile)
    records = load_runs(config)
    summary = json.loads((paths.results / "summary.json").read_text())
    ledger = claims.read(config)
    paired = findings.paired_table(config, "fusion_st", "st_adapter")
    pairs = comparisons.comparison_table(
        config, findings.pairs(config), without=("mrpc", "rte", "cb")
    )
    graph = transfer_graph() if config.data.source == "bundled" else {}
    runs = of_study(config)
    seconds = [r["seconds"] for records in runs.values() for r in records]
    hours = sum(s["train"] + s["evaluation"] for s in seconds) / 3600

    def figure(name: str) -> str:
        """A figure with its title, or nothing where this profile has none."""
        path = paths.figures / f"{name}.png"
        if not path.is_file():
            return ""
        data = base64.b64encode(path.read_bytes()).decode()
        return f'<h2>{TITLES[name]}</h2>\n<img alt="{TITLES[name]}" src="data:image/png;base64,{data}">'

    return jinja2.Template(TEMPLATE).render(
        profile=config.profile,
        verdict=_paragraphs(findings.verdict(config)),
        graph=_paragraphs(
            comparisons.graph_verdict(comparisons.transfer_graph_test(config, graph, records))
        ),
        tables=[
            (
                protocol.replace("_", "-"),
                tables.caption(config, records, protocol),
                _stacked(_html(tables.main_table(config, records, protocol))),
            )
            for protocol in tables.protocols(config)
        ],
        pairs=_html(comparisons.readable(pairs)),
        paired=_html(paired),
        claims=_html(claims.table(ledger)),
        claims_summary=_paragraphs(claims.summary(ledger)),
        controls=_html(findings.control_table(config)) if config.controls else "",
        figure=figure,
        costs=_html(facts.cost_table(records)),
        forecast=_html(facts.forecast_table(config, runs).rename_axis("method")),
        deviations=_paragraphs(facts.deviations(config, records)),
        failures=findings.failures(summary),
        backbone=summary["backbone"],
        runs=len(seconds),
        hours=f"{hours:.1f}",
        devices=", ".join(
            sorted({f"{r['device']['type']} ({r['device']['name']})" for r in records})
        ),
        target=config.targets[0],
    )


def time_spent(config: Config, started: float) -> str:
    """How much of the time since `started` (seconds since the epoch) went into training and evaluation.

    Runs count whose record was written since then, and the probes, which evaluate trained models; the
    rest of the time is DVC, kernels, imports, data, and workers that had to wait for each other.
    """
    wall = time.time() - started
    planner = Planner(config)
    study = set(planner.records())
    every = planner.paths.scratch.glob("*/run.json")
    fresh = [path for path in every if path.stat().st_mtime > started]
    if not fresh:
        return "Nothing had to be trained."
    busy = 0.0
    for path in fresh:
        seconds = json.loads(path.read_text())["seconds"]
        beside = workers(config) if path in study else 1  # the own-task notebook's, one by one
        busy += (seconds["train"] + seconds["evaluation"]) / beside
    columns = ["ended", "stage", "seconds"]
    stages = pd.read_csv(find_root() / "build" / "stages.csv", names=columns)
    stages = stages[stages["ended"] > started].groupby("stage", sort=False)["seconds"]
    busy += stages.sum().get("probes", 0.0)
    table = stages.agg(["count", "sum"]).rename(columns={"count": "times", "sum": "seconds"})
    table.loc["data, DVC, imports"] = [0, wall - table["seconds"].sum()]
    table["times"] = table["times"].astype(int)
    return (
        f"{table.round(0).to_markdown()}\n\n"
        f"{len(fresh)} runs in {wall / 60:.1f} minutes, {workers(config)} side by side; "
        f"{100 * (1 - busy / wall):.0f} % of the time was not training or evaluation."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the profile's report, or print its table.")
    parser.add_argument("--print", action="store_true", help="print the table and name the report")
    parser.add_argument("--since", type=float, help="with --print: when the pipeline was started")
    arguments = parser.parse_args()
    try:
        config = load_config()
        paths = Paths(config.profile)
        target: Path = paths.results / "report.html"
        if arguments.print:
            print(tables.read_main_table(config))
            print(findings.verdict(config))
            if arguments.since:
                print(f"\n{time_spent(config, arguments.since)}")
            print(f"\nReport: {paths.relative(target)}")
            return
        page = build(config)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    with atomic_write(target) as temporary:
        temporary.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
