"""README's findings, copied from a profile's results so that no number there is typed by hand.

python -m adapterfusion.readme            # rewrite the part between the markers
"""

import re
from pathlib import Path

from adapterfusion.config import load_config
from adapterfusion.paths import Paths, atomic_write, find_root
from adapterfusion.tables import read_main_table

PROFILE = "minilm"
MARKED = re.compile(r"(<!-- findings -->\n).*?(<!-- /findings -->)", re.S)


def findings(root: Path) -> str:
    """The main table, its caption and the verdict of the profile that README speaks of."""
    config = load_config(root / "profiles" / f"{PROFILE}.yaml")
    verdict = (Paths(PROFILE, root).tables / "verdict.md").read_text(encoding="utf-8")
    return f"{read_main_table(config)}\n{verdict}"


def render(root: Path) -> str:
    """README.md as it should be, given the results."""
    text = (root / "README.md").read_text(encoding="utf-8")
    return MARKED.sub(lambda m: f"{m[1]}\n{findings(root)}\n{m[2]}", text)


def main() -> None:
    root = find_root()
    text = render(root)
    with atomic_write(root / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
