"""README's findings, copied from the committed results so that no number there is typed by hand.

python -m adapterfusion.readme            # rewrite what stands between the markers
"""

import re
from pathlib import Path

from adapterfusion.config import load_config
from adapterfusion.paths import Paths, atomic_write, find_root
from adapterfusion.tables import read_main_table

MARKED = re.compile(r"(<!-- findings (\w+) -->\n).*?(<!-- /findings -->)", re.S)


def findings(root: Path, profile: str) -> str:
    """A profile's main table, its caption and the verdict."""
    config = load_config(root / "profiles" / f"{profile}.yaml")
    verdict = (Paths(profile, root).tables / "verdict.md").read_text(encoding="utf-8")
    return f"{read_main_table(config)}\n{verdict}"


def profiles(root: Path) -> list[str]:
    """The profiles that README speaks of."""
    return [m[2] for m in MARKED.finditer((root / "README.md").read_text(encoding="utf-8"))]


def render(root: Path) -> str:
    """README.md as it should be, given the results."""
    text = (root / "README.md").read_text(encoding="utf-8")
    return MARKED.sub(lambda m: f"{m[1]}\n{findings(root, m[2])}\n{m[3]}", text)


def main() -> None:
    root = find_root()
    text = render(root)
    with atomic_write(root / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
