"""What the options in the public library's configs (adapters 1.3.0) mean in our terms.

Most of them have no counterpart here. Each is either at the one value for which our formula is the
right one, or without effect, or the config is refused with an error that names file, key and remedy.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from adapterfusion.config import AdapterConfig, FusionConfig

PENALTY = 0.01  # the library has a switch for the penalty and this one weight

# What a config must say (or leave out) for our formula to be the right one ...
ADAPTER_FIXED = {
    "output_adapter": True,
    "original_ln_after": True,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
    "ln_before": False,
    "ln_after": False,
    "is_parallel": False,
    "scaling": 1.0,
    "use_gating": False,
    "inv_adapter": None,
    "cross_adapter": False,
    "leave_out": [],
    "dropout": 0.0,
    "phm_layer": False,
    "stochastic_depth": 0.0,
}
FUSION_FIXED = {
    "query": True,
    "key": True,
    "query_before_ln": False,
    "residual_before": False,
    "temperature": False,
}
HEAD_FIXED = {"layers": 2, "activation_function": "tanh", "use_pooler": False}
# ... and what has no effect once that holds: initial values, and details of layers that are absent.
# `value_before_softmax` only says when V is applied, which cannot matter: V is linear.
ADAPTER_INERT = {
    "init_weights": "bert",
    "init_weights_seed": None,
    "inv_adapter_reduction_factor": None,
    "phm_dim": 4,
    "factorized_phm_W": True,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "factorized_phm_rule": False,
    "phm_c_init": "normal",
    "phm_init_range": 0.0001,
    "learn_phm": True,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "phm_rank": 1,
    "phm_bias": True,
}
FUSION_INERT = {"value_before_softmax": True, "value_initialized": True}
ACTIVATIONS = {name: name for name in ("relu", "gelu", "swish", "leakyrelu")} | {"silu": "swish"}
OLD_ACTIVATIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}  # names from before there was a version


class AdapterHubError(ValueError):
    """A folder that cannot be used here. The message names file, key and remedy."""


def refuse(where: Path, key: str, problem: str, remedy: str) -> NoReturn:
    raise AdapterHubError(f"{where}: {key}: {problem}. {remedy}")


def _only(
    where: Path, config: Mapping[str, Any], fixed: Mapping[str, Any], others: set[str]
) -> None:
    """Each option has its fixed value, is one of `others`, or ends the reading."""
    remedy = "Use one that was trained without this option."
    for key, value in config.items():
        if key == "leave_out" and value is None:
            continue
        if key in fixed and value != fixed[key]:
            problem = f"{value!r} has no counterpart here, only {fixed[key]!r}"
            refuse(where, f"config.{key}", problem, remedy)
        if key not in fixed and key not in others:
            refuse(where, f"config.{key}", f"{value!r} is an option unknown here", remedy)


def adapter_config(where: Path, values: Mapping[str, Any]) -> AdapterConfig:
    """The library's adapter options in our terms."""
    config = dict(values["config"])
    if config.pop("architecture", None) is not None:  # absent for what the library calls bottleneck
        kind = values["config"]["architecture"]
        refuse(where, "config.architecture", f"{kind!r}", "Use a bottleneck adapter.")
    if values.get("type") == "text_task":  # the oldest files name an invertible part and lack it;
        config.pop("invertible_adapter", None)  # one that has it is refused for its tensors
    own = {"mh_adapter", "original_ln_before", "reduction_factor", "non_linearity"}
    _only(where, config, ADAPTER_FIXED, own | set(ADAPTER_INERT))

    double, before = config.get("mh_adapter"), config.get("original_ln_before", False)
    if (double, before) not in ((False, True), (True, False)):
        problem = f"{before} with mh_adapter {double} is neither Pfeiffer's nor Houlsby's adapter"
        refuse(where, "config.original_ln_before", problem, "Use an adapter of one of the two.")
    reduction = config.get("reduction_factor")
    if type(reduction) not in (int, float) or reduction < 1 or reduction != int(reduction):
        problem = f"{reduction!r} is not one whole number for all layers"
        refuse(where, "config.reduction_factor", problem, "Use an adapter of one width.")
    activation = str(config.get("non_linearity")).lower()
    if "version" not in values:
        activation = OLD_ACTIVATIONS.get(activation, activation)
    if activation not in ACTIVATIONS:
        known = ", ".join(dict.fromkeys(ACTIVATIONS.values()))
        refuse(where, "config.non_linearity", f"{activation!r} is not known", f"Known: {known}.")
    architecture = "houlsby" if double else "pfeiffer"
    return AdapterConfig(architecture, int(reduction), ACTIVATIONS[activation])


def fusion_config(where: Path, values: Mapping[str, Any], usual_dropout: float) -> FusionConfig:
    """The library's fusion options in our terms. usual_dropout: meant where it says none, or 0."""
    config = values["config"]
    own = {"value", "regularization", "dropout_prob"}
    _only(where, config, FUSION_FIXED, own | set(FUSION_INERT))
    for key in (*FUSION_FIXED, "value"):
        if not isinstance(config.get(key), bool):
            refuse(where, f"config.{key}", "missing", "Fetch or save the folder again.")
    return FusionConfig(
        variant="dynamic" if config["value"] else "static",
        penalty=PENALTY if config["value"] and config.get("regularization") else 0.0,
        dropout=config.get("dropout_prob") or usual_dropout,
    )


def fused_names(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The fused adapters in their order; older files have them in the fusion's name alone."""
    return tuple(values.get("adapter_names") or values["name"].split(","))


def head_config(where: Path, values: Mapping[str, Any]) -> tuple[tuple[str, ...], int | None, int]:
    """Labels (none for multiple choice), number of choices (None for classification), outputs."""
    config = values["config"]
    counted = {"classification": "num_labels", "multiple_choice": "num_choices"}
    kind = config.get("head_type")
    if kind not in counted:
        remedy = f"Heads that can be used: {', '.join(counted)}."
        refuse(where, "config.head_type", f"{kind!r} has no counterpart here", remedy)
    fixed = HEAD_FIXED | {"bias": True}
    _only(where, config, fixed, {"head_type", "label2id", "dropout_prob", counted[kind]})
    count = config.get(counted[kind])
    if type(count) is not int or count < 1:
        remedy = "Fetch or save the folder again."
        refuse(where, f"config.{counted[kind]}", f"{count!r} is not a number of outputs", remedy)
    if kind == "multiple_choice":
        return (), count, 1
    ids = config.get("label2id") or {}
    if ids and sorted(ids.values()) != list(range(count)):
        problem = f"its ids are not 0 to {count - 1}"
        refuse(where, "config.label2id", problem, "Correct the file.")
    return tuple(sorted(ids, key=ids.__getitem__)), None, count
