"""params.yaml is read strictly: each mistake gives one error that names file, key and remedy."""

import dataclasses
import typing
from pathlib import Path

import pytest
import yaml

from adapterfusion.config import (
    AdapterConfig,
    ConfigError,
    ControlName,
    FusionConfig,
    MethodName,
    Recipes,
    load_config,
    parse_config,
)
from adapterfusion.methods import CONTROLS, METHODS

ROOT = Path(__file__).parents[1]
RECIPE = {"learning_rate": 1e-3, "epochs": 2, "patience": 1}


def valid() -> dict:
    return {
        "profile": "test",
        "backbone": {"name": "some/model"},
        "data": {"source": "bundled"},
        "tasks": {"cb": {"seeds": [1, 2]}, "rte": {"seeds": [1], "train": 100, "dev": None}},
        "sources": ["cb", "rte"],
        "targets": ["rte"],
        "methods": ["st_adapter", "fusion_st"],
        "recipes": {
            name: dict(RECIPE) for name in (field.name for field in dataclasses.fields(Recipes))
        },
    }


def changed(key: str, value: object) -> dict:
    """The valid values with one key set, or dropped where the value is DROP."""
    values = valid()
    *path, last = key.split(".")
    section = values
    for name in path:
        section = section.setdefault(name, {})
    if value is DROP:
        del section[last]
    else:
        section[last] = value
    return values


DROP = object()
WRONG = [  # key that is set, its value, what the error calls it, part of the remedy
    ("profile", DROP, "profile", "profiles/ has examples"),
    ("backbone.name", DROP, "backbone.name", "profiles/ has examples"),
    ("recipes.full", DROP, "recipes.full", "profiles/ has examples"),
    ("recipes.full.epochs", DROP, "recipes.full.epochs", "profiles/ has examples"),
    ("epochs", 3, "epochs: unknown key", "Known keys here: profile"),
    ("adapter.reducton", 16, "adapter.reducton: unknown key", "reduction"),
    ("tasks.cb.seed", 1, "tasks.cb.seed: unknown key", "seeds"),
    ("recipes.full.learning_rate", "1e-4", "recipes.full.learning_rate", "1.0e-4"),
    ("recipes.full.learning_rate", 0, "recipes.full", "positive"),
    ("recipes.full.epochs", 2.0, "recipes.full.epochs: 2.0 is a float", "type int"),
    ("recipes.full.epochs", True, "recipes.full.epochs: True is a bool", "type int"),
    ("recipes.full.learning_rate", True, "recipes.full.learning_rate", "type float"),
    ("recipes.full.patience", 0, "recipes.full", "positive"),
    ("recipes.full", 3, "recipes.full: a mapping is needed", "profiles/"),
    ("adapter.reduction", "16", "adapter.reduction: '16' is a str", "without quotes"),
    ("adapter.reduction", 0, "adapter.reduction", "at least 1"),
    ("adapter.activation", "tanh", "adapter.activation: 'tanh'", "relu, gelu, swish"),
    ("adapter.architecture", None, "adapter.architecture: None", "pfeiffer, houlsby"),
    ("fusion.variant", ["dynamic"], "fusion.variant", "dynamic, static"),
    ("fusion.penalty", -0.01, "fusion", "not negative"),
    ("fusion.dropout", 1.0, "fusion", "[0, 1)"),
    ("data.source", "hug", "data.source: 'hug'", "bundled, mirror, hub"),
    ("data.validation", 1, "data.validation", "[0, 1)"),
    ("data.source", "mirror", "data.mirror: missing", "Name the folder"),
    ("training.batch_size", 0, "training.batch_size", "at least 1"),
    ("training.precision", "float16", "training.precision: 'float16'", "float32, bfloat16"),
    ("training.clip_norm", 0, "training", "clip_norm are positive"),
    ("tasks", {}, "tasks: empty", "at least one"),
    ("tasks", ["cb"], "tasks: a mapping is needed", "profiles/"),
    ("tasks.cb.seeds", [], "tasks.cb.seeds", "each once"),
    ("tasks.cb.seeds", [1, 1], "tasks.cb.seeds", "each once"),
    ("tasks.cb.seeds", 1, "tasks.cb.seeds: a list is needed", "[a, b]"),
    ("tasks.cb.seeds", [1, "2"], "tasks.cb.seeds[1]: '2' is a str", "without quotes"),
    ("tasks.cb.train", 0, "tasks.cb.train", "null for no cap"),
    ("sources", ["cb", "sst2"], "sources: 'sst2' is not under tasks", "Add it there"),
    ("sources", ["cb", "cb"], "sources: a task is named twice", "once"),
    ("targets", [], "targets: empty", "at least one"),
    ("targets", "rte", "targets: a list is needed", "[a, b]"),
    ("methods", DROP, "methods", "profiles/ has examples"),
    ("methods", "full", "methods: a list is needed", "[a, b]"),
    ("recipes.joint", DROP, "recipes.joint", "profiles/ has examples"),
    ("recipes.fusion_st", RECIPE, "recipes.fusion_st: unknown key", "fusion"),
    ("recipes.joint.warmup", 1.0, "recipes.joint: warmup lies in [0, 1)", "Correct"),
    ("recipes.joint.warmup", -0.1, "recipes.joint: warmup lies in [0, 1)", "Correct"),
    ("recipes.full.weight_decay", -1, "recipes.full: warmup", "not negative"),
    ("training.weight_decay", 0.1, "training.weight_decay: unknown key", "threads"),
    ("training.threads", 0, "training: threads", "are positive"),
    ("training.side_by_side", -1, "training: threads", "are positive"),
    ("control_targets", ["sst2"], "control_targets: 'sst2' is not under tasks", "Add it there"),
    ("control_targets", ["cb"], "control_targets: 'cb' is not a target", "Add it to targets"),
    ("control_targets", ["rte", "rte"], "control_targets: a task is named twice", "once"),
    ("sequential", {"cb": "rte"}, "sequential.cb: 'rte' cannot come before 'cb'", "a target"),
    ("sequential", {"rte": "rte"}, "sequential.rte: 'rte' cannot", "another task"),
    ("sequential", {"rte": "sst2"}, "sequential.rte: 'sst2' cannot", "its source"),
    ("sequential", ["rte"], "sequential: a mapping is needed", "profiles/"),
    ("source_seed", "1", "source_seed: '1' is a str", "without quotes"),
    ("low_resource", {"rows": [8]}, "low_resource.targets: missing", "profiles/"),
    ("low_resource", {"targets": ["cb"], "rows": [8]}, "low_resource.targets: 'cb'", "a target"),
    ("low_resource", {"targets": ["x"], "rows": [8]}, "low_resource.targets: 'x'", "Add it"),
    ("low_resource", {"targets": ["rte"], "rows": [1]}, "low_resource.rows", "two rows"),
    ("low_resource", {"targets": ["rte"], "rows": 8}, "low_resource.rows: a list", "[a, b]"),
    ("fusion.drop_last", 1, "fusion.drop_last: 1 is a int", "type bool"),
    ("fusion.variant", "mean", "fusion.variant: 'mean'", "average_parameters, scalars"),
    ("methods", ["fusion"], "methods[0]: 'fusion' is not known", "fusion_st, fusion_mt"),
    ("methods", ["full", "static"], "methods[1]: 'static' is not known", "head, full"),
    ("controls", ["fusion_st"], "controls[0]: 'fusion_st' is not known", "own_only"),
    ("methods", ["fusion_st"], "methods: fusion_st needs st_adapter", "Add it"),
    ("methods", ["fusion_mt"], "methods: fusion_mt needs mt_adapter", "Add it"),
    ("methods", ["sequential"], "methods: sequential needs full", "Add it"),
]
NO_STUDY = [
    ("methods", [], "methods: empty"),
    ("controls", ["static"], "control_targets"),  # on no target
    ("methods", ["full", "sequential"], "sequential"),  # from nowhere
    ("source_seed", -1, "source_seed"),
    ("low_resource", {"targets": ["rte"], "rows": [8, 8]}, "low_resource.rows"),
]


def message_of(values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(values, "mine.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "named", "remedy"), WRONG, ids=[f"{w[0]}-{i}" for i, w in enumerate(WRONG)]
)
def test_a_mistake_is_named_with_its_remedy(key, value, named, remedy):
    message = message_of(changed(key, value))
    assert message.startswith(f"mine.yaml: {named}")
    assert remedy in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value", "named"), NO_STUDY, ids=[f"{w[0]}-{i}" for i, w in enumerate(NO_STUDY)]
)
def test_a_study_that_cannot_be_run_is_refused(key, value, named):
    message = message_of(changed(key, value))
    assert message.startswith(f"mine.yaml: {named}")
    assert "\n" not in message


def test_every_method_and_control_of_the_table_is_known_and_no_other():
    assert typing.get_args(MethodName) == tuple(METHODS)
    assert typing.get_args(ControlName) == tuple(CONTROLS)


@pytest.mark.parametrize(
    "addition",
    [{"controls": ["static"]}, {"low_resource": {"targets": ["rte"], "rows": [8]}}],
)
def test_what_is_held_against_fusion_needs_fusion(addition):
    values = changed("methods", ["st_adapter"]) | {"control_targets": ["rte"]} | addition
    assert message_of(values).startswith("mine.yaml: methods: controls and low_resource need")


def test_without_its_own_adapter_a_fusion_needs_another():
    values = changed("sources", ["rte"]) | {"controls": ["without_own"], "control_targets": ["rte"]}
    assert message_of(values).startswith("mine.yaml: sources: without_own needs a second one")


@pytest.mark.parametrize("control", ["own_only", "own_longer"])
def test_a_control_with_the_own_adapter_needs_a_target_that_is_a_source(control):
    values = changed("sources", ["cb"]) | {"controls": [control], "control_targets": ["rte"]}
    assert message_of(values).startswith("mine.yaml: control_targets")


@pytest.mark.parametrize("values", [None, [], "text", 3])
def test_a_file_that_holds_no_mapping_is_refused(values):
    assert "mine.yaml: the file: a mapping is needed" in message_of(values)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "key", ["recipes.full.learning_rate", "fusion.penalty", "training.clip_norm"]
)
def test_a_number_that_is_not_finite_is_refused(key, value):
    assert key in message_of(changed(key, value))


def test_valid_values_are_read_with_types_and_defaults():
    config = parse_config(valid())
    assert config.tasks["cb"].seeds == (1, 2)
    assert config.tasks["rte"].train == 100 and config.tasks["rte"].dev is None
    assert config.sources == ("cb", "rte")
    assert config.adapter == AdapterConfig("pfeiffer", 16, "relu")
    assert config.fusion == FusionConfig("dynamic", "folded", 0.01, 0.1)
    assert config.training.clip_norm == 1 and config.training.threads == 1
    assert config.recipes.full.weight_decay == 0 and config.recipes.full.warmup == 0
    assert config.methods == ("st_adapter", "fusion_st") and config.controls == ()
    assert config.sequential == {} and config.low_resource is None and config.source_seed is None


def test_an_integer_may_stand_where_a_float_is_due():
    penalty = parse_config(changed("fusion.penalty", 0)).fusion.penalty
    assert penalty == 0 and type(penalty) is float


def test_nothing_can_be_changed_once_read():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse_config(valid()).adapter.reduction = 2


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_is_read_as_its_values(tmp_path):
    assert load_config(write(tmp_path, yaml.safe_dump(valid()))) == parse_config(valid())


def test_a_number_that_yaml_reads_as_text_is_refused_in_a_file(tmp_path):
    text = yaml.safe_dump(valid()).replace("learning_rate: 0.001", "learning_rate: 1e-3")
    with pytest.raises(ConfigError, match=r"params\.yaml: recipes\.\w+\.learning_rate.*1\.0e-4"):
        load_config(write(tmp_path, text))


@pytest.mark.parametrize(
    ("addition", "key"),
    [("profile: other\n", "profile"), ("adapter: {reduction: 2, reduction: 16}\n", "reduction")],
)
def test_a_key_written_twice_is_refused(tmp_path, addition, key):
    with pytest.raises(ConfigError, match=rf"params\.yaml.*'{key}' is named twice.*line \d+"):
        load_config(write(tmp_path, yaml.safe_dump(valid()) + addition))


@pytest.mark.parametrize("text", ["profile: [", "a: b: c", "\tprofile: x"])
def test_a_file_that_is_not_yaml_is_named(tmp_path, text):
    with pytest.raises(ConfigError, match=r"params\.yaml: not valid YAML"):
        load_config(write(tmp_path, text))


def test_a_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"profile: \xff\xfe")
    with pytest.raises(ConfigError, match=r"params\.yaml: not valid YAML"):
        load_config(path)


def test_a_missing_file_is_named_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(ConfigError, match=r"params\.yaml: not found\. `make profile"):
        load_config(tmp_path / "params.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "profiles").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_profile_is_valid(path):
    assert load_config(path).profile


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_no_generator_takes_are_refused(seed):
    values = yaml.safe_load((ROOT / "profiles" / "smoke.yaml").read_text())
    values["tasks"]["uses"]["seeds"] = [seed]
    with pytest.raises(ConfigError, match=r"tasks\.uses\.seeds: a seed lies outside"):
        parse_config(values)
