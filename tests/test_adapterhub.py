"""Folders of the public library: read as they are, written as it would, refused for a reason.

That what is read also computes the same is test_golden's part.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from golden_cases import CASES, FUSIONS, GOLDEN, backbone, build, logits, read_case
from safetensors.torch import save_file

from adapterfusion import hubruns
from adapterfusion.adapter import TaskAdapter
from adapterfusion.adapterhub import (
    describe,
    load_adapter,
    load_fusion,
    load_head,
    save_adapter,
    save_fusion,
    save_head,
)
from adapterfusion.backbone import file_sha256
from adapterfusion.checkpoint import load_adapter as load_run_adapter
from adapterfusion.config import AdapterConfig, FusionConfig
from adapterfusion.fusion import TaskFusion
from adapterfusion.hubfiles import backbone_name
from adapterfusion.huboptions import AdapterHubError
from adapterfusion.model import Head, TaskModel

ADAPTER = GOLDEN / "pfeiffer-relu" / "adapters" / "task0"  # with a head, on tiny-bert
FUSION = GOLDEN / "fusion-two" / "fusion"


@pytest.fixture
def bert():
    return backbone("tiny-bert")


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def edit(folder: Path, file: str, **changes) -> None:
    """Change a JSON file. Keys: of its `config` where they are there, else of the file itself."""
    path = folder / file
    values = json.loads(path.read_text())
    for key, value in changes.items():
        inside = key not in ("model_name", "model_type", "hidden_size", "name", "version", "type")
        (values["config"] if inside else values)[key] = value
    path.write_text(json.dumps(values))


def retensor(folder: Path, file: str, change) -> None:
    """Rewrite a file of tensors with `change(dict)` applied."""
    values = tensors(folder / file)
    change(values)
    torch.save(values, folder / file)


@pytest.fixture
def adapter_folder(tmp_path) -> Path:
    return Path(shutil.copytree(ADAPTER, tmp_path / "adapter"))


@pytest.fixture
def fusion_folder(tmp_path) -> Path:
    return Path(shutil.copytree(FUSION, tmp_path / "fusion"))


# --- written as the library writes ----------------------------------------------------------------


def same_folder(ours: Path, theirs: Path, config: str, weights: str) -> None:
    assert json.loads((ours / config).read_text()) == json.loads((theirs / config).read_text())
    one, other = tensors(ours / weights), tensors(theirs / weights)
    assert list(one) == list(other)
    for key, tensor in other.items():
        assert one[key].dtype == tensor.dtype and torch.equal(one[key], tensor), key


@pytest.mark.parametrize("name", CASES)
def test_read_and_written_again_is_the_same(name: str, tmp_path):
    case = read_case(name)
    encoder = backbone(case.backbone)
    known_as = f"golden/{case.backbone}"
    for adapter, folder in case.adapters.items():
        loaded = load_adapter(folder, encoder)
        save_adapter(tmp_path / adapter, adapter, loaded, encoder, known_as)
        same_folder(tmp_path / adapter, folder, "adapter_config.json", "pytorch_adapter.bin")
    out, values = tmp_path / "rest", json.loads((case.head / "head_config.json").read_text())
    head = load_head(case.head, encoder)
    save_head(out, values["name"], head.head, encoder, head.labels, head.choices, known_as)
    same_folder(out, case.head, "head_config.json", "pytorch_model_head.bin")
    if case.fusion:
        fusion = load_fusion(case.fusion, encoder)
        save_fusion(out, fusion.adapters, fusion.fusion, encoder, values["name"], known_as)
        weights = "pytorch_model_adapter_fusion.bin"
        same_folder(out, case.fusion, "adapter_fusion_config.json", weights)


def test_the_same_bytes_every_time(bert, tmp_path):
    adapter = load_adapter(ADAPTER, bert)
    for name in ("one", "two"):
        save_adapter(tmp_path / name, "a", adapter, bert)
    one, two = ((tmp_path / n / "pytorch_adapter.bin").read_bytes() for n in ("one", "two"))
    assert one == two


def test_options_of_ours_survive(bert, tmp_path):
    fusion = TaskFusion(32, 2, FusionConfig(variant="dynamic", penalty=0.0, dropout=0.35))
    save_fusion(tmp_path, ["a", "b"], fusion, bert)
    loaded = load_fusion(tmp_path, bert)
    assert loaded.adapters == ("a", "b")
    assert loaded.fusion.config == fusion.config
    save_head(tmp_path, "a,b", Head(32, 2, dropout=0.45), bert, ["no", "yes"])
    head = load_head(tmp_path, bert)
    assert (head.head[0].p, head.labels, head.choices) == (0.45, ("no", "yes"), None)


def test_no_dropout_of_its_own_means_the_backbones(bert):
    assert load_fusion(FUSION, bert).fusion.config.dropout == 0.2
    assert load_head(FUSION, bert).head[0].p == 0.1


def test_what_cannot_be_written(bert, tmp_path):
    with pytest.raises(AdapterHubError, match=r"adapter_config\.json: name: 'a\.b'.*Choose"):
        save_adapter(tmp_path, "a.b", load_adapter(ADAPTER, bert), bert)
    with pytest.raises(ValueError, match="labels: 3 different names"):
        save_head(tmp_path, "a", Head(32, 3), bert, ["no", "yes", "no"])
    bert.config.model_type = "electra"
    with pytest.raises(AdapterHubError, match="model_type: 'electra' is not known"):
        save_head(tmp_path, "a", Head(32, 2), bert)


# --- read whatever its age ------------------------------------------------------------------------


def same_adapter(one: TaskAdapter, other: TaskAdapter) -> None:
    assert one.config == other.config
    assert all(torch.equal(t, other.state_dict()[k]) for k, t in one.state_dict().items())


def test_safetensors_and_no_prefix(adapter_folder, bert):
    file = adapter_folder / "pytorch_adapter.bin"
    bare = {key.removeprefix("bert."): tensor for key, tensor in tensors(file).items()}
    save_file(bare, adapter_folder / "adapter.safetensors")
    file.unlink()
    same_adapter(load_adapter(adapter_folder, bert), load_adapter(ADAPTER, bert))


def test_a_folder_from_before_version_two(adapter_folder, bert):
    """No version, other module names, other names of activations, an invertible part not there."""
    path = adapter_folder / "adapter_config.json"
    values = json.loads(path.read_text())
    del values["version"]
    keep = ("ln_before", "ln_after", "mh_adapter", "output_adapter", "original_ln_before")
    values["config"] = {key: values["config"][key] for key in keep} | {
        "non_linearity": "gelu_orig",
        "reduction_factor": 2,
        "invertible_adapter": {"block_type": "nice", "reduction_factor": 2},
    }
    path.write_text(json.dumps(values | {"type": "text_task"}))
    retensor(
        adapter_folder,
        "pytorch_adapter.bin",
        lambda t: [
            t.update({k.replace("output.adapters", "output.layer_text_task_adapters"): t.pop(k)})
            for k in list(t)
        ],
    )
    loaded = load_adapter(adapter_folder, bert)
    assert loaded.config == AdapterConfig("pfeiffer", 2, "gelu")
    edit(adapter_folder, "adapter_config.json", non_linearity="gelu")
    with pytest.raises(AdapterHubError, match=r"config\.non_linearity: 'gelu_new'"):
        load_adapter(adapter_folder, bert)
    edit(adapter_folder, "adapter_config.json", non_linearity="relu", type="text_lang")
    with pytest.raises(AdapterHubError, match=r"config\.invertible_adapter"):
        load_adapter(adapter_folder, bert)


def test_a_namesake_saved_along(fusion_folder, bert):
    """The library saves all modules whose name begins alike."""

    def add(values):
        for key in list(values):
            values[key.replace("pair", "pair2")] = values[key] + 1

    retensor(fusion_folder, "pytorch_model_adapter_fusion.bin", add)
    retensor(fusion_folder, "pytorch_model_head.bin", add)
    one, other = load_fusion(fusion_folder, bert).fusion, load_fusion(FUSION, bert).fusion
    assert torch.equal(one.layers[1].key.weight, other.layers[1].key.weight)
    one, other = load_head(fusion_folder, bert).head, load_head(FUSION, bert).head
    assert torch.equal(one[4].weight, other[4].weight)


def test_value_after_softmax_is_the_same(fusion_folder, bert):
    edit(fusion_folder, "adapter_fusion_config.json", value_before_softmax=False)
    assert load_fusion(fusion_folder, bert).fusion.config.variant == "dynamic"


def test_names_of_the_fused_adapters(fusion_folder, bert):
    assert load_fusion(fusion_folder, bert).adapters == ("task0", "task1")
    path = fusion_folder / "adapter_fusion_config.json"
    values = json.loads(path.read_text())
    del values["adapter_names"]
    path.write_text(json.dumps(values | {"name": "pair"}))
    assert load_fusion(fusion_folder, bert).adapters == ("pair",)


def test_loading_draws_no_random_number(bert):
    before = torch.get_rng_state()
    load_adapter(ADAPTER, bert)
    load_fusion(FUSION, bert)
    load_head(FUSION, bert)
    assert torch.equal(before, torch.get_rng_state())


def test_what_is_loaded_can_be_trained(bert):
    model = TaskModel(bert, 3).with_adapter(load_adapter(ADAPTER, bert))
    case = read_case("pfeiffer-relu")
    model(case.inputs).sum().backward()
    grads = [p.grad for p in model.adapter.parameters()]
    assert all(g is not None and g.abs().sum() > 0 for g in grads)


# --- refused, with file, key and remedy -----------------------------------------------------------


def refused(load, folder: Path, encoder, file: str, key: str, **arguments) -> None:
    with pytest.raises(AdapterHubError) as raised:
        load(folder, encoder, **arguments)
    message = str(raised.value)
    place, remedy = message.split(": ", 2)[:2], message.rsplit(". ", 1)[-1]
    assert place == [str(folder / file), key], message
    assert len(remedy) > 10 and remedy.endswith("."), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ln_before", True),
        ("ln_after", True),
        ("phm_layer", True),
        ("use_gating", True),
        ("scaling", 4.0),
        ("scaling", "learned"),
        ("stochastic_depth", 0.1),
        ("leave_out", [1]),
        ("is_parallel", True),
        ("adapter_residual_before_ln", True),
        ("residual_before_ln", False),
        ("residual_before_ln", "post_add"),
        ("original_ln_after", False),
        ("original_ln_before", False),
        ("mh_adapter", True),
        ("output_adapter", False),
        ("reduction_factor", {"0": 2, "default": 4}),
        ("reduction_factor", 2.5),
        ("reduction_factor", 0.5),
        ("reduction_factor", None),
        ("reduction_factor", 64),
        ("cross_adapter", True),
        ("inv_adapter", "nice"),
        ("dropout", 0.1),
        ("non_linearity", "mish"),
        ("architecture", "lora"),
        ("shared_adapter", True),
    ],
)
def test_an_adapter_with_an_option_we_lack(key, value, adapter_folder, bert):
    edit(adapter_folder, "adapter_config.json", **{key: value})
    named = "original_ln_before" if key == "mh_adapter" else key
    refused(load_adapter, adapter_folder, bert, "adapter_config.json", f"config.{named}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("query", False),
        ("key", False),
        ("value", None),
        ("query_before_ln", True),
        ("residual_before", True),
        ("temperature", True),
        ("sentence_level", True),
    ],
)
def test_a_fusion_with_an_option_we_lack(key, value, fusion_folder, bert):
    edit(fusion_folder, "adapter_fusion_config.json", **{key: value})
    refused(load_fusion, fusion_folder, bert, "adapter_fusion_config.json", f"config.{key}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("head_type", "tagging"),
        ("layers", 1),
        ("activation_function", "relu"),
        ("use_pooler", True),
        ("bias", False),
        ("num_labels", None),
        ("num_labels", "2"),
        ("label2id", {"no": 1, "yes": 2}),
    ],
)
def test_a_head_we_lack(key, value, fusion_folder, bert):
    edit(fusion_folder, "head_config.json", **{key: value})
    refused(load_head, fusion_folder, bert, "head_config.json", f"config.{key}")


LOADERS = [
    (load_adapter, ADAPTER, "adapter_config.json", "pytorch_adapter.bin"),
    (load_head, FUSION, "head_config.json", "pytorch_model_head.bin"),
    (load_fusion, FUSION, "adapter_fusion_config.json", "pytorch_model_adapter_fusion.bin"),
]


@pytest.mark.parametrize(("load", "source", "config", "weights"), LOADERS)
def test_another_backbone(load, source, config, weights, bert, tmp_path):
    folder = Path(shutil.copytree(source, tmp_path / "it"))
    refused(load, folder, bert, config, "model_name", backbone_name="other/tiny-bert")
    load(folder, bert, backbone_name="golden/tiny-bert")
    load(folder, bert, backbone_name="tiny-bert")  # an id from before there were organisations
    edit(folder, config, model_name="golden/else")
    refused(load, folder, bert, config, "model_name")
    load(folder, bert, backbone_name="golden/else")  # the caller says that this is the one
    edit(folder, config, model_name=None)
    refused(load, folder, bert, config, "model_name", backbone_name="golden/tiny-bert")
    edit(folder, config, hidden_size=48)
    refused(load, folder, bert, config, "hidden_size")
    refused(load, folder, backbone("tiny-roberta"), config, "model_type")


@pytest.mark.parametrize(("load", "source", "config", "weights"), [LOADERS[0], LOADERS[2]])
@pytest.mark.parametrize("depth", [1, 3])
def test_another_number_of_layers(load, source, config, weights, depth, bert):
    bert.config.num_hidden_layers = depth
    refused(load, source, bert, weights, "encoder.layer.1")


class Code:
    """Unpickled as Python does by default, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(("load", "source", "config", "weights"), LOADERS)
def test_damaged_files(load, source, config, weights, bert, tmp_path):
    folder = Path(shutil.copytree(source, tmp_path / "it"))
    whole = tensors(folder / weights)
    last = list(whole)[-1]
    short = last.removeprefix("bert.")

    def with_weights(values):
        torch.save(values, folder / weights)

    with_weights({k: t for k, t in whole.items() if k != last})
    refused(load, folder, bert, weights, short)
    with_weights(whole | {"more.weight": torch.zeros(1)})
    refused(load, folder, bert, weights, "more.weight")
    with_weights(whole | {last: torch.zeros(3, 5)})
    refused(load, folder, bert, weights, short)
    with_weights([1, 2])
    refused(load, folder, bert, weights, "the file")
    with_weights({last: Code(tmp_path / "ran")})
    refused(load, folder, bert, weights, "the file")
    assert not (tmp_path / "ran").exists()
    for size in (0, 100, (source / weights).stat().st_size // 2):
        (folder / weights).write_bytes((source / weights).read_bytes()[:size])
        refused(load, folder, bert, weights, "the file")
    (folder / weights).unlink()
    refused(load, folder, bert, weights, "the file")

    (folder / config).write_text((source / config).read_text()[:50])
    refused(load, folder, bert, config, "the file")
    (folder / config).write_text("[]")
    refused(load, folder, bert, config, "config")
    (folder / config).write_text('{"config": {}}')
    refused(load, folder, bert, config, "name")
    (folder / config).unlink()
    refused(load, folder, bert, config, "the file")


def test_a_fusion_of_houlsby_adapters(fusion_folder, bert):
    name = "encoder.layer.0.attention.output.adapter_fusion_layer.pair.query.weight"
    weights = "pytorch_model_adapter_fusion.bin"
    retensor(fusion_folder, weights, lambda t: t.update({f"bert.{name}": torch.zeros(32, 32)}))
    refused(load_fusion, fusion_folder, bert, weights, name)


def test_the_name_of_a_backbone_in_the_hubs_cache(bert):
    bert.config.name_or_path = "/cache/hub/models--google-bert--bert-base-uncased/snapshots/86b5e0"
    assert backbone_name(bert) == "google-bert/bert-base-uncased"
    bert.config.name_or_path = str(GOLDEN / "backbones" / "tiny-bert")
    assert backbone_name(bert) == "tiny-bert"
    bert.config.name_or_path = "roberta-base"
    assert backbone_name(bert) == "roberta-base"


# --- the command line, and runs -------------------------------------------------------------------


def test_show(adapter_folder, fusion_folder, tmp_path):
    out = "\n".join(describe(fusion_folder))
    assert "'pair', made for 'golden/tiny-bert'" in out and "dynamic, of task0, task1" in out
    assert "labels label0, label1" in out
    edit(adapter_folder, "adapter_config.json", ln_after=True)
    out = "\n".join(describe(adapter_folder))
    assert "not usable here" in out and "config.ln_after" in out
    assert describe(tmp_path) == [f"{tmp_path}: no adapter, fusion or head in it"]


def test_show_from_the_shell(adapter_folder):
    command = [sys.executable, "-m", "adapterfusion.adapterhub", "show", str(adapter_folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "pfeiffer, reduction 2, relu" in done.stdout
    (adapter_folder / "pytorch_adapter.bin").write_bytes(b"")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and "pytorch_adapter.bin" in done.stderr


def write_run(folder: Path, name: str) -> Path:
    """A run folder as training leaves it, with the weights of a golden case."""
    case = read_case(name)
    model = build(case)
    module, prefix = (model.fusion, "fusion") if case.fusion else (model.adapter, "adapter")
    weights = {f"head.{k}": t for k, t in model.head.state_dict().items()}
    weights |= {f"{prefix}.{k}": t for k, t in module.state_dict().items()}
    sha256 = file_sha256(GOLDEN / "backbones" / case.backbone / "model.safetensors")
    record = {
        "task": next(iter(case.adapters)),
        "config": {
            "trains": prefix,
            "backbone": {"sha256": sha256},
            prefix: vars(module.config),
        },
        "data": {
            "n_outputs": model.head[-1].out_features,
            "choices": model.choices,
            "labels": load_head(case.head, model.backbone).labels,
        },
        "attention": {"adapters": list(case.adapters)},
    }
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(record))
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", CASES)
def test_export_of_a_run(name: str, tmp_path):
    case = read_case(name)
    run, out = write_run(tmp_path / "run", name), tmp_path / "out"
    folder = GOLDEN / "backbones" / case.backbone
    hubruns.export_run(run, out, folder, f"golden/{case.backbone}")
    theirs = case.fusion or next(iter(case.adapters.values()))
    for path in theirs.glob("*.json"):
        expected = json.loads(path.read_text())
        if name == "fusion-two":
            expected["name"] = "task0,task1"  # a run names no fusion of its own
        assert json.loads((out / path.name).read_text()) == expected
    for path in theirs.glob("*.bin"):
        pairs = zip(tensors(out / path.name).values(), tensors(path).values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("method", ["st_adapter", "controls/st_continued"])
def test_export_finds_the_weights_in_the_results(method: str, tmp_path):
    run = write_run(tmp_path / "runs" / method / "task0" / "seed0", "pfeiffer-relu")
    weights = tmp_path / "weights" / method / "task0" / "seed0" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    (run / "model.safetensors").rename(weights)
    folder = GOLDEN / "backbones" / "tiny-bert"
    hubruns.export_run(run, tmp_path / "out", folder, "golden/tiny-bert")
    assert (tmp_path / "out" / "pytorch_adapter.bin").is_file()


def test_export_refuses(tmp_path):
    run = write_run(tmp_path / "run", "pfeiffer-relu")
    with pytest.raises(AdapterHubError, match=r"run\.json: config\.backbone\.sha256"):
        hubruns.export_run(run, tmp_path / "out", GOLDEN / "backbones" / "tiny-roberta", "x")
    record = json.loads((run / "run.json").read_text())
    record["config"]["trains"] = "backbone"
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(AdapterHubError, match=r"run\.json: config\.trains: 'backbone'"):
        hubruns.export_run(run, tmp_path / "out", GOLDEN / "backbones" / "tiny-bert", "x")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("start", {"sha256": "0"}, "config.start"),
        ("fusion", {"variant": "average"}, "config.fusion"),
        ("fusion", {"drop_last": True}, "config.fusion"),
        ("fusion", {"random_others": True}, "config.fusion"),
    ],
)
def test_export_refuses_a_fusion_the_library_has_no_form_for(key, value, named, tmp_path):
    run = write_run(tmp_path / "run", "fusion-two")
    record = json.loads((run / "run.json").read_text())
    record["config"][key] = record["config"].get(key, {}) | value
    del record["attention"]
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(AdapterHubError, match=rf"run\.json: {named}"):
        hubruns.export_run(run, tmp_path / "out", GOLDEN / "backbones" / "tiny-bert", "x")


def test_export_refuses_a_run_on_several_tasks(tmp_path):
    run = write_run(tmp_path / "run", "pfeiffer-relu")
    record = json.loads((run / "run.json").read_text())
    record["config"]["trains"], record["tasks"] = "backbone", {"a": record.pop("data")}
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(AdapterHubError, match=r"run\.json: config\.trains: 'backbone'"):
        hubruns.export_run(run, tmp_path / "out", GOLDEN / "backbones" / "tiny-bert", "x")


def test_import_gives_a_source_of_a_fusion(bert, tmp_path):
    folder = GOLDEN / "backbones" / "tiny-bert"
    out = tmp_path / "model.safetensors"
    hubruns.import_adapter(ADAPTER, out, folder)
    digest = file_sha256(folder / "model.safetensors")
    spec = SimpleNamespace(backbone=SimpleNamespace(sha256=digest), start=None)
    loaded = load_run_adapter(out, bert, spec, "any")
    same_adapter(loaded, load_adapter(ADAPTER, bert))


@pytest.mark.parametrize("name", FUSIONS)
def test_ten_lines_for_a_user(name: str, tmp_path):
    """What the module's docstring promises: published adapters fused here, and handed on."""
    case = read_case(name)
    encoder = backbone(case.backbone)
    adapters = [load_adapter(folder, encoder) for folder in case.adapters.values()]
    size = encoder.config
    fusion = TaskFusion(size.hidden_size, size.num_hidden_layers, FusionConfig())
    model = TaskModel(encoder, n_outputs=2).with_fusion(fusion, adapters).eval()
    before = logits(model, case)
    save_fusion(tmp_path, list(case.adapters), fusion, encoder)
    save_head(tmp_path, "head", model.head, encoder, labels=["no", "yes"])

    encoder = backbone(case.backbone)
    adapters = [load_adapter(folder, encoder) for folder in case.adapters.values()]
    again = TaskModel(encoder, n_outputs=2)
    again.with_fusion(load_fusion(tmp_path, encoder).fusion, adapters).eval()
    again.head = load_head(tmp_path, encoder).head.eval()
    assert torch.equal(before, logits(again, case))
