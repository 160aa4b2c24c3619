"""Adapters and the seam they enter by: Pfeiffer and Houlsby against the formula written out in plain
tensor products, the way in and out of a backbone, parameter counts, and the bank of many adapters.
"""

import math

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from adapterfusion import adapter as adapter_module
from adapterfusion.adapter import ACTIVATIONS, Adapter, AdapterBank, TaskAdapter
from adapterfusion.config import AdapterConfig, FusionConfig
from adapterfusion.fusion import TaskFusion
from adapterfusion.inject import InjectionError, eject, inject_adapter, inject_fusion
from adapterfusion.model import TaskModel, load_backbone

PLAIN_ACTIVATIONS = {
    "relu": lambda x: x * (x > 0),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "swish": lambda x: x / (1 + torch.exp(-x)),
    "leakyrelu": lambda x: torch.where(x > 0, x, 0.01 * x),
}


def task_adapter(architecture: str = "pfeiffer", activation: str = "relu", seed: int = 1):
    """An adapter for the tiny backbones whose every weight is far from its start."""
    config = AdapterConfig(architecture, reduction=4, activation=activation)
    adapter = TaskAdapter(32, 2, config)
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return adapter


def inputs() -> dict[str, Tensor]:
    """Three sequences, two of them padded with token 1, as in RoBERTa (BERT masks it as well)."""
    ids = torch.randint(10, 100, (3, 9), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([9, 5, 7])
    mask = (torch.arange(9) < lengths[:, None]).long()
    return {"input_ids": ids * mask + (1 - mask), "attention_mask": mask}


def hidden(backbone) -> Tensor:
    with torch.no_grad():
        return backbone.eval()(**inputs()).last_hidden_state


def plain_up(adapter: Adapter, x: Tensor) -> Tensor:
    act = PLAIN_ACTIVATIONS[adapter.activation]
    g = act(x @ adapter.down.weight.T + adapter.down.bias)
    return g @ adapter.up.weight.T + adapter.up.bias


@torch.no_grad()
def plain_encoder(backbone, adapter: TaskAdapter) -> Tensor:
    """The whole encoder from its state dict, with adapters where the paper puts them."""
    w = backbone.state_dict()
    heads, eps = backbone.config.num_attention_heads, backbone.config.layer_norm_eps
    batch = inputs()

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + eps)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(name: str, x: Tensor) -> Tensor:
        q, k, v = (
            linear(f"{name}.{part}", x).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(batch["attention_mask"][:, None, None] == 0, -1e30)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)

    x = backbone.embeddings(batch["input_ids"])
    for i, after_feed_forward in enumerate(adapter.output):
        layer = f"encoder.layer.{i}"
        h = linear(f"{layer}.attention.output.dense", attention(f"{layer}.attention.self", x))
        if adapter.config.architecture == "houlsby":
            h = h + plain_up(adapter.attention[i], h)
        x = norm(f"{layer}.attention.output.LayerNorm", h + x)
        h = linear(f"{layer}.output.dense", F.gelu(linear(f"{layer}.intermediate.dense", x)))
        if adapter.config.architecture == "houlsby":
            h = h + plain_up(after_feed_forward, h)
        else:
            y = norm(f"{layer}.output.LayerNorm", h + x)
            h = h + plain_up(after_feed_forward, y)
        x = norm(f"{layer}.output.LayerNorm", h + x)
    return x


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("architecture", ["pfeiffer", "houlsby"])
def test_adapted_backbone_equals_plain_formula(saved, architecture, activation):
    backbone = load_backbone(saved.path).eval()
    adapter = task_adapter(architecture, activation)
    expected = plain_encoder(backbone, adapter)
    inject_adapter(backbone, adapter)
    torch.testing.assert_close(hidden(backbone), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", ["pfeiffer", "houlsby"])
def test_zero_up_projection_changes_no_bit(saved, architecture):
    backbone = load_backbone(saved.path)
    before = hidden(backbone)
    adapter = task_adapter(architecture)
    for block in (*adapter.output, *adapter.attention):
        torch.nn.init.zeros_(block.up.weight)
        torch.nn.init.zeros_(block.up.bias)
    inject_adapter(backbone, adapter)
    assert torch.equal(hidden(backbone), before)


@pytest.mark.parametrize("architecture", ["pfeiffer", "houlsby"])
def test_eject_restores_the_backbone_to_the_bit(saved, architecture):
    backbone = load_backbone(saved.path)
    before, modules = hidden(backbone), dict(backbone.named_modules())
    inject_adapter(backbone, task_adapter(architecture))
    assert not torch.equal(hidden(backbone), before)
    eject(backbone)
    assert torch.equal(hidden(backbone), before)
    assert dict(backbone.named_modules()) == modules


def test_eject_of_a_fusion_restores_the_backbone_to_the_bit(saved):
    backbone = load_backbone(saved.path)
    before = hidden(backbone)
    inject_fusion(backbone, TaskFusion(32, 2, FusionConfig()), [task_adapter(), task_adapter()])
    assert not torch.equal(hidden(backbone), before)
    eject(backbone)
    assert torch.equal(hidden(backbone), before)


def test_eject_gives_the_block_the_mode_of_what_it_replaces(bert):
    backbone = load_backbone(bert.path).eval()
    inject_adapter(backbone, task_adapter())
    backbone.train()
    eject(backbone)
    assert all(module.training for module in backbone.modules())


@pytest.mark.parametrize("training", [True, False])
def test_injection_keeps_the_mode_of_the_backbone(bert, training):
    backbone = load_backbone(bert.path).train(training)
    inject_adapter(backbone, task_adapter("houlsby").train(training))
    assert {module.training for module in backbone.modules()} == {training}


def test_second_injection_is_refused_and_leaves_the_first(saved):
    backbone = load_backbone(saved.path)
    inject_adapter(backbone, task_adapter())
    adapted = hidden(backbone)
    with pytest.raises(InjectionError, match="eject"):
        inject_adapter(backbone, task_adapter("houlsby", seed=2))
    with pytest.raises(InjectionError, match="eject"):
        inject_fusion(backbone, TaskFusion(32, 2, FusionConfig()), [task_adapter(seed=2)])
    assert torch.equal(hidden(backbone), adapted)
    eject(backbone)
    inject_adapter(backbone, task_adapter("houlsby"))


def test_another_depth_is_refused(bert):
    backbone = load_backbone(bert.path)
    with pytest.raises(InjectionError, match="3 layers, the backbone has 2"):
        inject_adapter(backbone, TaskAdapter(32, 3, AdapterConfig(reduction=4)))


def test_a_model_without_the_seam_is_refused():
    with pytest.raises(InjectionError, match="BERT and RoBERTa"):
        inject_adapter(torch.nn.Linear(2, 2), task_adapter())


@pytest.mark.parametrize("architecture", ["pfeiffer", "houlsby"])
def test_no_backbone_key_or_tensor_is_lost(saved, architecture):
    backbone = load_backbone(saved.path)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    inject_adapter(backbone, task_adapter(architecture))
    after = backbone.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(".delta." in name for name in after.keys() - before.keys())
    parameters = {p.data_ptr() for p in backbone.parameters()}
    assert len(parameters) == len(list(backbone.parameters()))  # nothing is held twice


def test_hidden_states_of_every_layer_are_still_returned(saved):
    backbone = load_backbone(saved.path).eval()
    with torch.no_grad():
        plain = backbone(**inputs(), output_hidden_states=True).hidden_states
        inject_adapter(backbone, task_adapter())
        adapted = backbone(**inputs(), output_hidden_states=True).hidden_states
    assert len(plain) == len(adapted) == 3
    assert torch.equal(plain[0], adapted[0])
    assert not torch.equal(plain[1], adapted[1])
    assert torch.equal(adapted[2], hidden(backbone))


@pytest.mark.parametrize(
    ("architecture", "reduction", "expected"),
    [
        ("pfeiffer", 16, 894_528),
        ("pfeiffer", 2, 7_091_712),
        ("pfeiffer", 64, 230_544),
        ("houlsby", 16, 1_789_056),
    ],
)
def test_parameter_counts_on_bert_base(architecture, reduction, expected):
    with torch.device("meta"):
        model = base_model()
        model.with_adapter(TaskAdapter(768, 12, AdapterConfig(architecture, reduction)))
    assert trained_beside_head(model) == expected


@pytest.mark.parametrize(("variant", "expected"), [("dynamic", 21_252_096), ("static", 14_174_208)])
def test_fusion_parameter_count_on_bert_base_does_not_depend_on_adapters(variant, expected):
    for n in (1, 3):
        with torch.device("meta"):
            model = base_model()
            adapters = [TaskAdapter(768, 12, AdapterConfig()) for _ in range(n)]
            model.with_fusion(TaskFusion(768, 12, FusionConfig(variant)), adapters)
        assert trained_beside_head(model) == expected


def base_model() -> TaskModel:
    config = transformers.BertConfig()
    return TaskModel(transformers.BertModel(config, add_pooling_layer=False), n_outputs=2)


def trained_beside_head(model: TaskModel) -> int:
    return sum(p.numel() for name, p in model.trainable().items() if not name.startswith("head."))


def test_a_new_adapter_starts_near_zero_with_zero_biases():
    torch.manual_seed(0)
    adapter = Adapter(400, 100, "relu")
    for linear in (adapter.down, adapter.up):
        assert torch.equal(linear.bias, torch.zeros_like(linear.bias))
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert abs(linear.weight.mean().item()) < 1e-3


def test_bottleneck_width_is_the_hidden_size_over_the_reduction():
    assert TaskAdapter(32, 1, AdapterConfig(reduction=8)).output[0].down.out_features == 4
    assert TaskAdapter(32, 1, AdapterConfig(reduction=32)).output[0].down.out_features == 1
    with pytest.raises(ValueError, match=r"adapter\.reduction: 33"):
        TaskAdapter(32, 1, AdapterConfig(reduction=33))


def random_adapters(widths: list[int], activation: str) -> list[Adapter]:
    torch.manual_seed(len(widths))
    adapters = [Adapter(12, width, activation).double() for width in widths]
    for adapter in adapters:
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter)
    return adapters


def check_bank(adapters: list[Adapter]) -> None:
    bank = AdapterBank(adapters)
    y = torch.randn(2, 5, 12, dtype=torch.float64)
    g = bank.bottlenecks(y)
    assert g.shape == (2, 5, len(adapters), max(a.down.out_features for a in adapters))
    expected = torch.stack([adapter(y) for adapter in adapters], dim=-2)
    torch.testing.assert_close(bank.outputs(g), expected, atol=1e-12, rtol=1e-12)
    folded = F.linear(g.flatten(-2), bank.up_weight) + bank.up_bias.sum(0)
    torch.testing.assert_close(folded, expected.sum(-2), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("widths", [[4], [3, 3, 3], [1, 6, 2]])
def test_bank_equals_its_adapters_one_by_one(widths, activation):
    check_bank(random_adapters(widths, activation))


def test_bank_of_other_widths_is_exact_where_activation_of_zero_is_not_zero(monkeypatch):
    monkeypatch.setitem(adapter_module.ACTIVATIONS, "sigmoid", torch.sigmoid)
    check_bank(random_adapters([1, 6, 2], "sigmoid"))


def test_bank_is_a_frozen_copy():
    adapters = random_adapters([3, 3], "relu")
    bank = AdapterBank(adapters)
    before = {name: tensor.clone() for name, tensor in bank.state_dict().items()}
    for adapter in adapters:
        for parameter in adapter.parameters():
            torch.nn.init.zeros_(parameter)
    assert all(torch.equal(bank.state_dict()[name], before[name]) for name in before)
    assert not any(p.requires_grad for p in bank.parameters())


def test_bank_refuses_adapters_of_two_activations():
    with pytest.raises(ValueError, match="one activation"):
        AdapterBank([Adapter(8, 2, "relu"), Adapter(8, 2, "gelu")])
