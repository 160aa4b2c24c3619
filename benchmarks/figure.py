"""The figure of a results file: cost against the number of adapters, ours and the peer's.

python benchmarks/figure.py [RESULTS.json]      (bench.py draws it after every run)
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NUMBERS = (1, 2, 4, 8, 16, 32)
LINES = {
    "adapters": ("adapters 1.3.0", "#b3562f", "o"),
    "ours": ("this repository", "#2f6fb3", "s"),
}


def curve(groups: dict[str, Any], key: str, library: str, what: str) -> list[tuple[int, float]]:
    """(N, time as a multiple of full fine-tuning in the same turn) or (N, MiB)."""
    points = []
    for n in NUMBERS:
        results = groups.get(key.format(n=n), {}).get("models", {})
        ours, anchor = results.get(f"{library} fusion n={n}"), results.get("ours full")
        if ours is None:
            continue
        if what == "seconds":
            pairs = zip(ours["turns"], anchor["turns"], strict=True)
            points.append((n, statistics.median(a[what] / b[what] for a, b in pairs)))
        else:
            points.append((n, ours[what]))
    return points


def draw(stored: dict[str, Any], path: Path) -> None:
    """Training step, inference, and saved activations of the largest backbone measured."""
    groups = stored["groups"]
    backbone = "bert-base" if any(key.startswith("bert-base") for key in groups) else "minilm"
    panels = [
        ("train", "seconds", "training step ÷ our full fine-tuning"),
        ("infer", "seconds", "inference ÷ our plain backbone"),
        ("train", "saved_mib", "saved activations, MiB"),
    ]
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
    for axis, (mode, what, title) in zip(axes, panels, strict=True):
        for library, (label, colour, marker) in LINES.items():
            points = curve(groups, f"{backbone} {mode} 8x128 float32 n={{n}}", library, what)
            if points:
                axis.plot(*zip(*points, strict=True), marker=marker, color=colour, label=label)
        if what == "seconds":
            axis.axhline(1, color="grey", linewidth=0.8, linestyle=":")
        axis.set_xscale("log", base=2)
        axis.set_xticks(NUMBERS, [str(n) for n in NUMBERS])
        axis.set_ylim(bottom=0)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("adapters fused", fontsize=9)
    axes[0].legend(fontsize=8)
    figure.suptitle(f"{backbone}, batch 8×128, float32, {stored['device']}", fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    found = [results] if results else sorted((Path(__file__).parent / "results").glob("*.json"))
    for one in found:
        draw(json.loads(one.read_text()), one.with_suffix(".png"))
