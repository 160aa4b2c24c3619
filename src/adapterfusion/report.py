"""One self-contained page for a profile: what was asked, what came out, and from which runs.

python -m adapterfusion.report            # write results/<profile>/report.html
python -m adapterfusion.report --print    # name the report and print the main table
"""

import argparse
import base64
import json
import sys
import time
from pathlib import Path

import jinja2
import pandas as pd

from adapterfusion import findings, tables
from adapterfusion.config import Config, load_config
from adapterfusion.paths import Paths, atomic_write
from adapterfusion.runs import load_runs

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
  table { border-collapse: collapse; font: 14px/1.4 system-ui, sans-serif; }
  th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; }
  th:first-child, td:first-child { text-align: left; }
  thead th { border-bottom: 2px solid #1a1a1a; }
  tbody tr:last-child td, tbody tr:last-child th { border-top: 1px solid #1a1a1a; }
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
{% for protocol, text, table in tables %}
<h2>Accuracy, {{ protocol }} protocol</h2>
<div class="scroll">{{ table }}</div>
<p class="note">{{ text }}</p>
{% endfor %}
<h2>Fusion against the single adapter</h2>
<div class="scroll">{{ paired }}</div>
<p class="note">Points of accuracy, paired by seed and dev row.</p>
{% for title, image in figures %}
<h2>{{ title }}</h2>
<img alt="{{ title }}" src="data:image/png;base64,{{ image }}">
{% endfor %}
<h2>What it cost</h2>
<div class="scroll">{{ costs }}</div>
<p class="note">Means per run, on {{ devices }}. Peak memory is that of the process, which may have
trained other seeds before.</p>
<h2>Where the numbers come from</h2>
<p>{{ failures }} Each run's record is
<code>results/{{ profile }}/runs/&lt;method&gt;/&lt;task&gt;/seed&lt;n&gt;/run.json</code>. Backbone
<code>{{ backbone.name }}</code>, sha256 <code>{{ backbone.sha256 }}</code>. Training and
evaluation took {{ hours }} hours in all. To repeat it:
<code>make profile NAME={{ profile }} &amp;&amp; dvc repro</code>.</p>
</body>
</html>
"""

FIGURES = {
    "evaluation/relative_to_full": "Relative to full fine-tuning",
    "attention/attention_layers": "Where fusion looks",
}


def _html(table: pd.DataFrame) -> str:
    return table.reset_index().to_html(index=False, border=0, escape=True)


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
    paired, _ = findings.paired_table(config, "fusion_st", "st_adapter")
    hours = sum(r["seconds"]["train"] + r["seconds"]["evaluation"] for r in records) / 3600
    return jinja2.Template(TEMPLATE).render(
        profile=config.profile,
        verdict=_paragraphs(findings.verdict(config)),
        tables=[
            (
                protocol.replace("_", "-"),
                tables.caption(config, records, protocol),
                _html(tables.main_table(config, records, protocol)),
            )
            for protocol in tables.protocols(config)
        ],
        paired=_html(paired),
        figures=[
            (title, base64.b64encode((paths.figures / f"{name}.png").read_bytes()).decode())
            for name, title in FIGURES.items()
        ],
        costs=_html(tables.cost_table(records)),
        failures=findings.failures(summary),
        backbone=summary["backbone"],
        hours=f"{hours:.2f}",
        devices=", ".join(
            sorted({f"{r['device']['type']} ({r['device']['name']})" for r in records})
        ),
    )


def time_spent(config: Config, started: float) -> str:
    """How much of the time since `started` (seconds since the epoch) went into training and evaluation.

    Only runs whose record was written since then count; the rest of the time is DVC, kernels, imports
    and data.
    """
    paths = Paths(config.profile)
    wall = time.time() - started
    fresh = [
        r["seconds"]["train"] + r["seconds"]["evaluation"]
        for r in load_runs(config)
        if (paths.run(r["method"], r["task"], r["seed"]) / "run.json").stat().st_mtime > started
    ]
    if not fresh:
        return "Nothing had to run."
    return (
        f"{len(fresh)} runs in {wall / 60:.1f} minutes; {100 * (1 - sum(fresh) / wall):.0f} % of the "
        "time was not training or evaluation."
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
