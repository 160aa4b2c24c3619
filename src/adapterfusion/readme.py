"""README's numbers, copied from the committed results so that none there is typed by hand.

python -m adapterfusion.readme            # rewrite what stands between the markers
"""

import json
import re
from pathlib import Path

import pandas as pd

from adapterfusion.config import load_config
from adapterfusion.paths import Paths, atomic_write, find_root
from adapterfusion.tables import read_main_table

MARKED = re.compile(r"(<!-- (findings|speed) (\S+) -->\n).*?(<!-- /\2 -->)", re.S)
HEADLINE = "bert-base 8x128 float32"  # the setting of the benchmark that README shows


def findings(root: Path, profile: str) -> str:
    """A profile's main table, its caption and the verdict."""
    config = load_config(root / "profiles" / f"{profile}.yaml")
    verdict = (Paths(profile, root).tables / "verdict.md").read_text(encoding="utf-8")
    return f"{read_main_table(config)}\n{verdict}"


def speed(root: Path, device: str) -> str:
    """The benchmark's ratios on one device, as its results file has them."""
    measured = json.loads((root / "benchmarks" / "results" / f"{device}.json").read_text())
    rows = [
        {
            "16 adapters": row["ratio"],
            "median": f"{row['median']:.2f}",
            "lowest – highest": f"{row['lowest']:.2f} – {row['highest']:.2f}",
        }
        for row in measured["ratios"]
        if row["setting"] == HEADLINE
    ]
    table = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    return f"{table}\n\n{HEADLINE}, {measured['device']}, ratios within a turn.\n"


WRITERS = {"findings": findings, "speed": speed}


def marked(root: Path) -> list[tuple[str, str]]:
    """What README shows: kind, and of which profile or device."""
    return [m.group(2, 3) for m in MARKED.finditer((root / "README.md").read_text("utf-8"))]


def render(root: Path) -> str:
    """README.md as it should be, given the results."""
    text = (root / "README.md").read_text(encoding="utf-8")
    return MARKED.sub(lambda m: f"{m[1]}\n{WRITERS[m[2]](root, m[3])}\n{m[4]}", text)


def main() -> None:
    root = find_root()
    text = render(root)
    with atomic_write(root / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
