"""params.yaml, read strictly: one frozen dataclass per section, one clear error per mistake.

DVC reads YAML 1.2 and Python's parser YAML 1.1, in which `1e-4` is a string. Such a number is
refused here rather than trained with; so are unknown keys, missing keys and wrong types.
"""

import dataclasses
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from adapterfusion.paths import find_root

MethodName = Literal[
    "head",
    "full",
    "st_adapter",
    "st_adapter_houlsby",
    "multitask_full",
    "mt_adapter",
    "sequential",
    "fusion_st",
    "fusion_mt",
]
ControlName = Literal[
    "own_only",
    "st_continued",
    "without_own",
    "longer",
    "st_longer",
    "own_longer",
    "one_seed",
    "random_others",
    "average_outputs",
    "average_parameters",
    "scalars",
    "concatenation",
    "static",
    "frozen_value",
    "no_penalty",
    "no_last",
]
# A method that builds on another's runs.
NEEDS = {"fusion_st": "st_adapter", "fusion_mt": "mt_adapter", "sequential": "full"}


class ConfigError(ValueError):
    """params.yaml says something that cannot be run. The message names file, key and remedy."""


@dataclass(frozen=True)
class BackboneConfig:
    """The frozen transformer: a hub id (or a local folder), its commit and the weights' checksum."""

    name: str
    revision: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class DataConfig:
    """Where the tasks come from, and how much of train chooses the epoch.

    validation: share of each training set held out to choose the epoch (held-out protocol);
        0 chooses on dev, as the paper does.
    cache: folder where what comes from the hub is kept, verified, for use without a network.
    """

    source: Literal["bundled", "mirror", "hub"]
    mirror: str | None = None
    cache: str = "data/hub"
    validation: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class OwnTask:
    """A task of one's own; `own.py` has an example.

    train, dev: files (CSV, TSV, JSONL, parquet); without dev, `dev_share` of train is cut for it.
    hub, revision: a data-set repository that holds these files, and its commit.
    text: one or two columns. choices: the columns of a multiple-choice task's choices.
    label, labels: the label's column, and what it says in the order of the label ids.
    id: a column that names the rows, if there is one.
    """

    train: str
    text: tuple[str, ...]
    label: str
    labels: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    dev: str | None = None
    dev_share: float = 0.2
    hub: str | None = None
    revision: str | None = None
    id: str | None = None
    metrics: tuple[str, ...] = ("accuracy",)
    title: str | None = None
    licence: str = "not stated"


@dataclass(frozen=True)
class TaskConfig:
    """One task of the study.

    train, dev: most rows of each (null: all of them).
    epochs: trains every method for exactly so many epochs, where the recipes' are too few: an epoch
        of a tiny task is a handful of steps, and its held-out rows too few to stop early on.
    """

    seeds: tuple[int, ...]
    train: int | None = None
    dev: int | None = None
    max_length: int | None = None
    epochs: int | None = None
    own: OwnTask | None = None


@dataclass(frozen=True)
class AdapterConfig:
    """The bottleneck adapter (paper section 4.1, appendix A.2)."""

    architecture: Literal["pfeiffer", "houlsby"] = "pfeiffer"
    reduction: int = 16
    activation: Literal["relu", "gelu", "swish", "leakyrelu"] = "relu"


@dataclass(frozen=True)
class FusionConfig:
    """The fusion layer (paper section 3.2).

    variant: dynamic and static are the paper's; the others are the study's controls (`mixers`).
    penalty: weight of sum ||V - I||^2 in the loss; 0 switches it off.
    dropout: on the scores, before the softmax.
    drop_last: the last layer gets neither adapters nor fusion (paper section 8.2).
    random_others: all adapters but the target's own are untrained ones.
    """

    variant: Literal[
        "dynamic",
        "static",
        "frozen_value",
        "average",
        "average_parameters",
        "scalars",
        "concatenation",
    ] = "dynamic"
    implementation: Literal["folded", "reference"] = "folded"
    penalty: float = 0.01
    dropout: float = 0.1
    drop_last: bool = False
    random_others: bool = False


@dataclass(frozen=True)
class Recipe:
    """How a method is trained: AdamW's peak learning rate, most epochs, and patience in epochs.

    warmup: the share of all steps in which the rate rises to its peak, before it falls to zero.
    """

    learning_rate: float
    epochs: int
    patience: int
    warmup: float = 0.0
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Recipes:
    """The recipes; `methods.METHODS` says which method uses which."""

    head: Recipe
    full: Recipe
    st_adapter: Recipe
    fusion: Recipe
    joint: Recipe


@dataclass(frozen=True)
class TrainingConfig:
    """What all methods share. batch_size decides the result; micro_batch_size only fits memory.

    threads: CPU threads of one run, which decide the last bits of its result.
    side_by_side: how many runs are trained at once; null: as many as there are cores for, one on a GPU.
    """

    batch_size: int = 32
    micro_batch_size: int = 32
    precision: Literal["float32", "bfloat16"] = "float32"
    clip_norm: float = 1.0
    threads: int = 1
    side_by_side: int | None = None


@dataclass(frozen=True)
class LowResource:
    """Targets whose training sets are cut to so many rows, for ST-A and fusion."""

    targets: tuple[str, ...]
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Config:
    """The whole of params.yaml.

    methods, controls: names from `methods.METHODS` and `methods.CONTROLS`; controls are run on
        `control_targets` alone.
    sequential: target -> the source that sequential transfer starts from.
    source_seed: the seed of the adapters that are fused; null takes the target's own.
    """

    profile: str
    backbone: BackboneConfig
    data: DataConfig
    tasks: dict[str, TaskConfig]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    methods: tuple[MethodName, ...]
    recipes: Recipes
    controls: tuple[ControlName, ...] = ()
    control_targets: tuple[str, ...] = ()
    sequential: dict[str, str] = field(default_factory=dict)
    source_seed: int | None = None
    low_resource: LowResource | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)


def _fail(where: str, key: str, problem: str, remedy: str) -> typing.NoReturn:
    raise ConfigError(f"{where}: {key}: {problem}. {remedy}")


def build(hint: Any, value: Any, key: str, where: str) -> Any:
    """`value` as the type `hint` says, or an error that names `key`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _build_dataclass(hint, value, key, where)
    if origin in (types.UnionType, typing.Union):  # only ever `X | None`
        if value is None:
            return None
        return build(next(a for a in args if a is not type(None)), value, key, where)
    if origin is Literal:
        if value not in args:
            _fail(where, key, f"{value!r} is not known", f"Choose one of {', '.join(args)}.")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            _fail(where, key, f"a list is needed, not {value!r}", "Write it as [a, b].")
        return tuple(build(args[0], v, f"{key}[{i}]", where) for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            _fail(where, key, f"a mapping is needed, not {value!r}", "See profiles/.")
        return {str(k): build(args[1], v, f"{key}.{k}", where) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        _fail(where, key, f"{value} is not finite", "Write a finite number.")
    if type(value) is not hint:
        remedy = f"Write a value of type {hint.__name__}."
        if isinstance(value, str) and hint in (int, float):
            remedy = "Write the number without quotes, and with a point before an exponent: 1.0e-4."
        _fail(where, key, f"{value!r} is a {type(value).__name__}", remedy)
    return value


def _build_dataclass(cls: type, value: Any, key: str, where: str) -> Any:
    if not isinstance(value, dict):
        _fail(where, key or "the file", f"a mapping is needed, not {value!r}", "See profiles/.")
    hints = typing.get_type_hints(cls)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in hints:
            known = ", ".join(hints)
            _fail(where, f"{prefix}{name}", "unknown key", f"Known keys here: {known}.")
    arguments = {}
    for f in dataclasses.fields(cls):
        if f.name in value:
            arguments[f.name] = build(hints[f.name], value[f.name], f"{prefix}{f.name}", where)
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            _fail(where, f"{prefix}{f.name}", "missing", "Add it; profiles/ has examples.")
    return cls(**arguments)


def _check(config: Config, where: str) -> None:
    """What types alone cannot say."""
    for section in ("tasks", "sources", "targets", "methods"):
        if not getattr(config, section):
            _fail(where, section, "empty", "Name at least one.")
    low = config.low_resource or LowResource((), ())
    named = {
        "sources": config.sources,
        "targets": config.targets,
        "control_targets": config.control_targets,
        "low_resource.targets": low.targets,
    }
    for section, names in named.items():
        for name in names:
            if name not in config.tasks:
                _fail(where, section, f"{name!r} is not under tasks", "Add it there, or drop it.")
        if len(set(names)) != len(names):
            _fail(where, section, "a task is named twice", "Name each once.")
    for section in ("control_targets", "low_resource.targets"):
        for name in named[section]:
            if name not in config.targets:
                _fail(where, section, f"{name!r} is not a target", "Add it to targets, or drop it.")
    for target, source in config.sequential.items():
        if target not in config.targets or source not in config.tasks or source == target:
            _fail(
                where, f"sequential.{target}", f"{source!r} cannot come before {target!r}",
                "Name a target, and another task as its source.",
            )  # fmt: skip
    for name in config.methods:
        if NEEDS.get(name, name) not in config.methods:
            _fail(where, "methods", f"{name} needs {NEEDS[name]}", "Add it, or drop the other.")
    if (config.controls or low.rows) and "fusion_st" not in config.methods:
        _fail(where, "methods", "controls and low_resource need fusion_st", "Add it.")
    for target in config.control_targets:
        if {"own_only", "own_longer"} & {*config.controls} and target not in config.sources:
            _fail(where, "control_targets", f"{target!r} is not a source", "Add it to sources.")
    if "without_own" in config.controls and len(config.sources) < 2:
        _fail(where, "sources", "without_own needs a second one", "Name more sources.")
    if config.controls and not config.control_targets:
        _fail(where, "control_targets", "empty, but there are controls", "Name at least one.")
    if "sequential" in config.methods and not config.sequential:
        _fail(where, "sequential", "empty, but it is among the methods", "Name target: source.")
    if config.source_seed is not None and not 0 <= config.source_seed < 2**32:
        _fail(where, "source_seed", "lies outside [0, 2**32)", "Choose another, or null.")
    if any(rows < 2 for rows in low.rows) or len(set(low.rows)) != len(low.rows):
        problem = "each size needs at least two rows and is named once"
        _fail(where, "low_resource.rows", problem, "Correct it.")
    for name, task in config.tasks.items():
        if not task.seeds or len(set(task.seeds)) != len(task.seeds):
            _fail(
                where, f"tasks.{name}.seeds", "empty, or a seed is named twice", "List each once."
            )
        if not all(0 <= seed < 2**32 for seed in task.seeds):
            _fail(where, f"tasks.{name}.seeds", "a seed lies outside [0, 2**32)", "Choose another.")
        for key in ("train", "dev", "max_length", "epochs"):
            if getattr(task, key) is not None and getattr(task, key) < 1:
                _fail(where, f"tasks.{name}.{key}", "must be at least 1", "Use null for no cap.")
    if not 0 <= config.data.validation < 1:
        _fail(where, "data.validation", "must lie in [0, 1)", "0 chooses the epoch on dev.")
    if config.data.source == "mirror" and not config.data.mirror:
        _fail(where, "data.mirror", "missing", "Name the folder of the mirror.")
    if config.adapter.reduction < 1:
        _fail(where, "adapter.reduction", "must be at least 1", "The paper uses 2, 16 and 64.")
    if not 0 <= config.fusion.dropout < 1 or config.fusion.penalty < 0:
        _fail(where, "fusion", "dropout lies in [0, 1), penalty is not negative", "Correct it.")
    training = config.training
    if training.batch_size < 1 or training.micro_batch_size < 1:
        _fail(where, "training.batch_size", "batch sizes are at least 1", "Correct it.")
    counts = (training.threads, training.side_by_side or 1)
    if min(counts) < 1 or training.clip_norm <= 0:
        problem = "threads, side_by_side and clip_norm are positive"
        _fail(where, "training", problem, "Correct it.")
    for f in dataclasses.fields(config.recipes):
        recipe = getattr(config.recipes, f.name)
        if recipe.learning_rate <= 0 or recipe.epochs < 1 or recipe.patience < 1:
            _fail(
                where, f"recipes.{f.name}", "rate, epochs and patience are positive", "Correct it."
            )
        if not 0 <= recipe.warmup < 1 or recipe.weight_decay < 0:
            problem = "warmup lies in [0, 1), weight_decay is not negative"
            _fail(where, f"recipes.{f.name}", problem, "Correct it.")


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key written twice instead of keeping the last one silently."""


def _mapping_without_repeats(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict:
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if keys.count(key) > 1:
            line = node.start_mark.line + 1
            raise ConfigError(
                f"{loader.name}: {key!r} is named twice in the mapping at line {line}. Name it once."
            )
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats
)


def parse_config(values: Any, where: str = "params.yaml") -> Config:
    """A checked Config from the mapping a YAML file holds.

    Raises:
        ConfigError: naming `where`, the key and the remedy.
    """
    config = _build_dataclass(Config, values, "", where)
    _check(config, where)
    return config


def load_config(path: Path | None = None) -> Config:
    """The configuration in `path` (default: params.yaml at the project's root)."""
    path = path or find_root() / "params.yaml"
    try:
        with path.open(encoding="utf-8") as file:
            values = yaml.load(file, _StrictLoader)
    except FileNotFoundError:
        raise ConfigError(f"{path.name}: not found. `make profile NAME=bundled` puts one in place.")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: not valid YAML: {error}") from error
    return parse_config(values, path.name)
