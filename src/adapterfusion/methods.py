"""The study's methods and controls, one line each: what is trained, from where, over which adapters.

A row here and a notebook that shows it is all a new method needs; `plans.py` turns rows into runs.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from adapterfusion.config import Config


@dataclass(frozen=True)
class Method:
    """One row of the study.

    trains: what is trained beside the head. recipe: the entry of `recipes` it uses.
    joint: one run on all tasks. adapter: changes to the section `adapter`, where one is trained.
    sources: the method whose adapters are fused; only: the target's own alone, or all others.
    fusion: changes to the section `fusion`.
    one_seed: the fused adapters are those of each task's first seed, whatever the run's own is.
    start: the method whose weights a run starts from.
    epochs: the recipe that says for how long, where it is another than `recipe`.
    notebook: the notebook that shows its runs.
    folder: where its runs lie under results/<profile>/runs, beside the methods'.
    rows: so many training rows, for the low-resource curve.
    """

    name: str
    title: str
    trains: Literal["head", "backbone", "adapter", "fusion"]
    recipe: str
    notebook: str
    joint: bool = False
    adapter: dict[str, Any] | None = None
    sources: str | None = None
    only: Literal["own", "others"] | None = None
    fusion: dict[str, Any] = field(default_factory=dict)
    one_seed: bool = False
    start: str | None = None
    epochs: str | None = None
    folder: str = ""
    rows: int | None = None


def _table(*rows: Method) -> dict[str, Method]:
    return {row.name: row for row in rows}


METHODS = _table(
    Method("head", "Head only", "head", "head", "02_finetuning"),
    Method("full", "Full fine-tuning", "backbone", "full", "02_finetuning"),
    Method("st_adapter", "ST-A", "adapter", "st_adapter", "03_single_task_adapter", adapter={}),
    Method(
        *("st_adapter_houlsby", "ST-A Houlsby", "adapter", "st_adapter", "03_single_task_adapter"),
        adapter={"architecture": "houlsby", "activation": "swish"},  # as the public code has it
    ),
    Method("multitask_full", "Multi-task", "backbone", "joint", "04_multitask", joint=True),
    Method("mt_adapter", "MT-A", "backbone", "joint", "04_multitask", joint=True, adapter={}),
    Method("sequential", "Sequential", "backbone", "full", "04_multitask", start="full"),
    Method("fusion_st", "Fusion w/ ST-A", "fusion", "fusion", "05_fusion", sources="st_adapter"),
    Method(
        *("fusion_mt", "Fusion w/ MT-A", "fusion", "fusion", "05_fusion"),
        sources="mt_adapter",
        start="mt_adapter",
    ),
)


def _control(name: str, title: str, **fields: Any) -> Method:
    """Fusion of ST-A, but for what `fields` say."""
    common = {"trains": "fusion", "recipe": "fusion", "sources": "st_adapter"}
    where = {"notebook": "08_ablations", "folder": "controls/"}
    return Method(name, title, **where | common | fields)


CONTROLS = _table(
    _control("own_only", "Own adapter only", only="own"),
    _control(
        "st_continued",
        "ST-A trained on",
        trains="adapter",
        recipe="st_adapter",
        adapter={},
        sources=None,
        start="st_adapter",
        epochs="fusion",
    ),
    _control("without_own", "Without the own adapter", only="others"),
    _control("longer", "Fusion trained longer", epochs="head"),
    _control(
        "st_longer",
        "ST-A trained longer",
        trains="adapter",
        recipe="st_adapter",
        adapter={},
        sources=None,
        epochs="head",
    ),
    _control("own_longer", "Own adapter only, longer", only="own", epochs="head"),
    _control("one_seed", "Adapters of one seed", one_seed=True),
    _control("random_others", "Others untrained", fusion={"random_others": True}),
    _control("average_outputs", "Average of outputs", fusion={"variant": "average"}),
    _control(
        "average_parameters", "Average of parameters", fusion={"variant": "average_parameters"}
    ),
    _control("scalars", "One scalar per adapter", fusion={"variant": "scalars"}),
    _control("concatenation", "Concatenation, linear", fusion={"variant": "concatenation"}),
    _control("static", "Static (no V)", fusion={"variant": "static"}),
    _control("frozen_value", "V frozen at identity", fusion={"variant": "frozen_value"}),
    _control("no_penalty", "No penalty on V", fusion={"penalty": 0.0}),
    _control("no_last", "Last layer left out", fusion={"drop_last": True}),
)

LOW_RESOURCE = ("st_adapter", "fusion_st")


def low_resource(base: str, rows: int) -> str:
    """The name of a method on so many training rows: `fusion_st-64rows`."""
    return f"{base}-{rows}rows"


def method(name: str) -> Method:
    """The row of that name.

    Raises:
        KeyError: no such method or control.
    """
    cut = re.fullmatch(r"(\w+)-(\d+)rows", name)
    if not cut:
        return METHODS[name] if name in METHODS else CONTROLS[name]
    base, rows = METHODS[cut[1]], int(cut[2])
    fields = {f: getattr(base, f) for f in ("trains", "recipe", "adapter", "sources")}
    title = f"{base.title}, {rows} rows"
    where = {"notebook": "08_ablations", "folder": "low_resource/"}
    return Method(name, title, rows=rows, **where | fields)


def studied(config: Config) -> list[str]:
    """Every method, control and cut method that params.yaml asks for, in the order of the tables."""
    names = [n for n in METHODS if n in config.methods] + [
        n for n in CONTROLS if n in config.controls
    ]
    if config.low_resource:
        names += [low_resource(b, n) for n in config.low_resource.rows for b in LOW_RESOURCE]
    return names
