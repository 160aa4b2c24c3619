"""The paper's claims (data/reference/claims.yaml), each judged with the runs of a profile.

python -m adapterfusion.claims            # judge them, write results/<profile>/claims.json

A verdict is one of `reproduced`, `contradicted`, `not distinguishable` and `not tested`; how an interval
becomes a verdict stands at the top of claims.yaml; `score_tests.py` and `run_tests.py` have the tests.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from adapterfusion.catalogue import PAPER
from adapterfusion.config import Config, ConfigError, build, load_config
from adapterfusion.evidence import VERDICTS, Kind, NotTested, Outcome, Sizes, Study
from adapterfusion.paper import FOLDER, TITLES
from adapterfusion.paper import load as load_reference
from adapterfusion.paths import Paths, atomic_write, find_root
from adapterfusion.plans import RunError
from adapterfusion.run_tests import Attention, Frozen, Ratio, Share, Spread, Time, Untested
from adapterfusion.runs import load_runs
from adapterfusion.score_tests import Contrast, Difference
from adapterfusion.stats import LEVEL

FILE = (FOLDER / "claims.yaml").as_posix()
KINDS: dict[str, type[Kind]] = {
    "difference": Difference,
    "contrast": Contrast,
    "attention": Attention,
    "spread": Spread,
    "frozen": Frozen,
    "share": Share,
    "ratio": Ratio,
    "time": Time,
    "untested": Untested,
}
METHODS = (*TITLES, "no_last")  # the paper's, and a control that one of its remarks is about


class ClaimError(ValueError):
    """claims.yaml says something that cannot be tested. The message names file, claim and remedy."""


@dataclass(frozen=True)
class Needs:
    """What a claim cannot do without: methods with runs, and tasks that are targets."""

    methods: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Entry:
    """A claim as the file has it, but for its test."""

    id: str
    place: str
    claim: str
    tolerance: float
    needs: Needs = field(default_factory=Needs)
    paper: str | None = None


@dataclass(frozen=True)
class Claim(_Entry):
    test: Kind | None = None


def _misread(error: ConfigError) -> ClaimError:
    """The strict reader of params.yaml reads this file too, but points to other examples."""
    text = str(error).replace("See profiles/.", "See the other claims.")
    return ClaimError(text.replace("profiles/ has examples", "the other claims have examples"))


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key written twice."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
    keys = [key.value for key, _ in node.value]
    if repeated := [key for key in keys if keys.count(key) > 1]:
        line = node.start_mark.line + 1
        raise ClaimError(
            f"{FILE}: {repeated[0]!r} is named twice in the mapping at line {line}. Name it once."
        )
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _claim(values: Any, number: int) -> Claim:
    """One entry of the file, checked."""
    if not isinstance(values, dict):
        raise ClaimError(
            f"{FILE}: claim {number} is not a mapping. Give it id, place, claim, test."
        )
    values = dict(values)
    where = f"{FILE}: {values.get('id', f'claim {number}')}"
    test = values.pop("test", None)
    if not isinstance(test, dict) or test.get("kind") not in KINDS:
        kind = test.get("kind") if isinstance(test, dict) else test
        raise ClaimError(
            f"{where}: test.kind: {kind!r} is not known. Use one of {', '.join(KINDS)}."
        )
    arguments = {k: v for k, v in test.items() if k != "kind"}
    try:
        entry = build(_Entry, values, "", where)
        made = build(KINDS[test["kind"]], arguments, "test", where)
    except ConfigError as error:
        raise _misread(error)
    for what, named, needed, known in (
        ("methods", made.methods_named(), entry.needs.methods, METHODS),
        ("tasks", made.tasks_named(), entry.needs.tasks, tuple(PAPER)),
    ):
        for name in (*named, *needed):
            if name not in known:
                raise ClaimError(
                    f"{where}: {what}: {name!r} is not known. Use one of {', '.join(known)}."
                )
        for name in named:
            if name not in needed:
                raise ClaimError(
                    f"{where}: needs.{what}: the test uses {name!r}, which is not listed. Add it."
                )
    if entry.tolerance < 0:
        raise ClaimError(f"{where}: tolerance: {entry.tolerance} is negative. Write its size.")
    return Claim(**vars(entry), test=made)


def load(path: Path | None = None) -> tuple[Sizes, list[Claim]]:
    """The size limits and the claims of claims.yaml.

    Raises:
        ClaimError: an unknown key, kind, method or task, a wrong type, or an id used twice.
    """
    path = path or find_root() / FILE
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ClaimError(f"{FILE}: not found. It is part of the repository; restore it.")
    except yaml.YAMLError as error:
        raise ClaimError(f"{FILE}: not valid YAML: {error}")
    if not isinstance(values, dict) or set(values) != {"sizes", "claims"}:
        raise ClaimError(f"{FILE}: the keys at the top must be sizes and claims. Correct them.")
    if not isinstance(values["claims"], list):
        raise ClaimError(f"{FILE}: claims: a list is needed. Start each claim with `- id:`.")
    try:
        sizes = build(Sizes, values["sizes"], "sizes", FILE)
    except ConfigError as error:
        raise _misread(error)
    claims = [_claim(entry, i + 1) for i, entry in enumerate(values["claims"])]
    ids = [claim.id for claim in claims]
    for name in ids:
        if ids.count(name) > 1:
            raise ClaimError(f"{FILE}: {name}: two claims have this id. Rename one.")
    return sizes, claims


def judge(study: Study, claim: Claim) -> dict[str, Any]:
    """One claim's entry in claims.json."""
    missing = [m for m in claim.needs.methods if not study.tasks(m)]
    absent = [t for t in claim.needs.tasks if t not in study.config.targets]
    try:
        if missing:
            raise NotTested(f"no runs of {', '.join(missing)} in this profile")
        if absent:
            raise NotTested(f"not among this profile's targets: {', '.join(absent)}")
        outcome = claim.test.judge(study, claim.tolerance)
    except NotTested as reason:
        outcome = Outcome("not tested", f"{str(reason)[:1].upper()}{str(reason)[1:]}.", "–")
    return {
        "id": claim.id,
        "claim": claim.claim,
        "place": claim.place,
        "paper": claim.paper or claim.test.in_paper(study),
        "here": outcome.here,
        "verdict": outcome.verdict,
        "evidence": outcome.evidence,
        "interval": outcome.interval,
        "runs": outcome.runs,
    }


def evaluate(
    config: Config, records: list[dict[str, Any]], protocol: str | None = None
) -> dict[str, Any]:
    """What claims.json holds: every claim with its verdict, evidence and the runs behind it.

    records: `runs.load_runs(config)`, with those of a control added where a claim is about one.
    protocol: the first that the configuration has, unless named.

    Raises:
        ClaimError: claims.yaml cannot be used.
        RunError: predictions of a run are missing.
    """
    sizes, claims = load()
    study = Study.of(config, records, sizes, load_reference(), protocol)
    return {
        "profile": config.profile,
        "backbone": config.backbone.name,
        "protocol": study.protocol,
        "level": LEVEL,
        "sizes": {"rule": study.size_rule, "large": study.large, "small": study.small},
        "claims": [judge(study, claim) for claim in claims],
    }


def write(config: Config, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Judge all claims and write results/<profile>/claims.json; returns what it holds."""
    ledger = evaluate(config, records)
    with atomic_write(Paths(config.profile).results / "claims.json") as temporary:
        text = json.dumps(ledger, indent=1, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
    return ledger


def read(config: Config) -> dict[str, Any]:
    """The ledger that the evaluation wrote.

    Raises:
        RunError: it is missing.
    """
    paths = Paths(config.profile)
    path = paths.results / "claims.json"
    if not path.is_file():
        raise RunError(f"{paths.relative(path)}: missing. Run `dvc repro` first.")
    return json.loads(path.read_text(encoding="utf-8"))


def table(ledger: dict[str, Any]) -> pd.DataFrame:
    """The ledger for people: id, claim, place, the paper's number, ours with its interval, verdict."""
    columns = {"claim": "claim", "place": "place", "paper": "paper", "here": "here"}
    rows = [{"id": c["id"]} | {v: c[k] for k, v in columns.items()} for c in ledger["claims"]]
    frame = pd.DataFrame(rows).set_index("id")
    frame["verdict"] = [c["verdict"] for c in ledger["claims"]]
    return frame


def summary(ledger: dict[str, Any]) -> str:
    """How many claims came out how, and what to mind, in markdown."""
    verdicts = [c["verdict"] for c in ledger["claims"]]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in VERDICTS)
    return (
        f"{len(verdicts)} claims on profile `{ledger['profile']}`: {counts}. Protocol: "
        f"{ledger['protocol'].replace('_', '-')}. {ledger['sizes']['rule']} A verdict speaks of this "
        f"profile's data and backbone ({ledger['backbone']}); where these are not the paper's, it says "
        "whether the claim carries over, not whether the paper's number is right."
    )


def evidence_list(ledger: dict[str, Any]) -> str:
    """The evidence of every claim that was tested, and why the others were not, as a markdown list."""
    return "\n".join(f"- **{c['id']}**: {c['verdict']}. {c['evidence']}" for c in ledger["claims"])


def main() -> None:
    try:
        config = load_config()
        ledger = write(config, load_runs(config))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(table(ledger).drop(columns=["claim", "place"]).to_markdown())
    print(f"\n{summary(ledger)}")


if __name__ == "__main__":
    main()
