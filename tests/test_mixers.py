"""The other ways to mix adapters: each against its formula written out, and where all of them start."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_fusion import make_adapters, randomise
from torch import Tensor

from adapterfusion.adapter import Adapter, AdapterBank, TaskAdapter
from adapterfusion.assemble import build_model, source_adapters
from adapterfusion.config import AdapterConfig, FusionConfig
from adapterfusion.fusion import FusedAdapters, Fusion, TaskFusion, record_attention
from adapterfusion.mixers import Average, Concatenation, Scalars, average_parameters, mixer
from adapterfusion.model import TaskModel, load_backbone
from adapterfusion.spec import Artifact
from adapterfusion.train import Run, train

D, N = 12, 3
MIXERS = ["average", "scalars", "concatenation"]
VARIANTS = ["dynamic", "static", "frozen_value", *MIXERS, "average_parameters"]
INFO = {"two": {"n_outputs": 2, "choices": None}}


@pytest.fixture
def adapters() -> list[Adapter]:
    """Of two widths."""
    return make_adapters(N, D, [4, 3])


@pytest.fixture
def y() -> Tensor:
    return torch.randn(2, 5, D, generator=torch.Generator().manual_seed(3))


def outputs(adapters: list[Adapter], y: Tensor) -> Tensor:
    """Every adapter's output, one adapter at a time: [N, ..., d]"""
    parts = []
    for a in adapters:
        inner = torch.einsum("rd,btd->btr", a.down.weight, y) + a.down.bias
        parts.append(torch.einsum("dr,btr->btd", a.up.weight, inner.clamp(min=0)) + a.up.bias)
    return torch.stack(parts)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


# ---- formulas


def test_the_average_is_the_mean_of_the_outputs(adapters, y):
    close(Average()(y, AdapterBank(adapters)), outputs(adapters, y).mean(0))


def test_scalars_weigh_each_adapter_by_a_softmax(adapters, y):
    module = randomise(Scalars(N), 1.0)
    weights = module.scores.exp() / module.scores.exp().sum()
    assert weights.max() - weights.min() > 0.1
    expected = torch.einsum("n,nbtd->btd", weights, outputs(adapters, y))
    close(module(y, AdapterBank(adapters)), expected)


def test_concatenation_is_one_matrix_for_each_adapter(adapters, y):
    module = randomise(Concatenation(D, N), 0.5)
    blocks = module.weight.view(D, N, D)
    expected = torch.einsum("ond,nbtd->bto", blocks, outputs(adapters, y))
    close(module(y, AdapterBank(adapters)), expected)


@pytest.mark.parametrize("variant", MIXERS)
def test_mixers_start_as_the_uniform_average(adapters, y, variant):
    module = mixer(variant, D, N)
    close(module(y, AdapterBank(adapters)), outputs(adapters, y).mean(0))


def test_concatenation_starts_with_a_share_of_the_identity_for_each_adapter():
    weight = Concatenation(D, N).weight
    assert torch.equal(weight, torch.cat([torch.eye(D) / N] * N, dim=1))


@pytest.mark.parametrize("variant", MIXERS)
def test_order_of_the_adapters_means_nothing_at_the_start(adapters, y, variant):
    module = mixer(variant, D, N)
    permuted = [adapters[i] for i in (2, 0, 1)]
    close(module(y, AdapterBank(permuted)), module(y, AdapterBank(adapters)))


@pytest.mark.parametrize("variant", ["dynamic", "static", "frozen_value"])
def test_order_of_the_adapters_means_nothing_to_what_attends(adapters, y, variant):
    module = randomise(Fusion(D, FusionConfig(variant, dropout=0.0)), 0.3)
    permuted = [adapters[i] for i in (2, 0, 1)]
    close(module(y, AdapterBank(permuted)), module(y, AdapterBank(adapters)))


@pytest.mark.parametrize("variant", ["scalars", "concatenation"])
def test_learned_weights_go_with_their_adapter(adapters, y, variant):
    module, order = randomise(mixer(variant, D, N), 0.7), [2, 0, 1]
    moved = mixer(variant, D, N)
    with torch.no_grad():
        if variant == "scalars":
            moved.scores.copy_(module.scores[order])
        else:
            moved.weight.copy_(module.weight.view(D, N, D)[:, order].flatten(1))
    permuted = AdapterBank([adapters[i] for i in order])
    close(moved(y, permuted), module(y, AdapterBank(adapters)))
    assert not torch.allclose(module(y, permuted), moved(y, permuted), atol=1e-3)


@pytest.mark.parametrize("variant", ["scalars", "concatenation"])
def test_what_depends_on_the_number_of_adapters_asks_for_it(variant):
    with pytest.raises(ValueError, match=f"fusion.variant: {variant} needs the number of adapters"):
        TaskFusion(D, 1, FusionConfig(variant))


# ---- average of parameters


def task_adapters(*reductions: int) -> list[TaskAdapter]:
    return [
        randomise(TaskAdapter(D, 2, AdapterConfig(reduction=r)), 0.4, seed=i)
        for i, r in enumerate(reductions)
    ]


def test_average_of_parameters_is_the_mean_of_every_one_of_them():
    three = task_adapters(3, 3, 3)
    mean = average_parameters(three)
    for name, parameter in mean.named_parameters():
        a, b, c = (adapter.get_parameter(name) for adapter in three)
        close(parameter, (a + b + c) / 3)
    assert dict(mean.named_parameters()).keys() == dict(three[0].named_parameters()).keys()


def test_average_of_parameters_is_fused_as_one_adapter(y):
    two = task_adapters(3, 3)
    before = [p.detach().clone() for a in two for p in a.parameters()]
    layers = TaskFusion(D, 2, FusionConfig("average_parameters"), 2).over(two)
    for i, layer in enumerate(layers):
        merged = Adapter(D, 4, "relu")
        with torch.no_grad():
            for name, parameter in merged.named_parameters():
                a, b = (adapter.output[i].get_parameter(name) for adapter in two)
                parameter.copy_((a + b) / 2)
        close(layer(y), merged(y))
        assert not torch.allclose(layer(y), outputs([a.output[i] for a in two], y).mean(0))
    after = [p for a in two for p in a.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(before, after, strict=True))


def test_parameters_of_adapters_of_different_width_have_no_average():
    with pytest.raises(ValueError, match="adapters of one configuration only"):
        average_parameters(task_adapters(3, 4))


# ---- in a backbone


@pytest.fixture(scope="module")
def sources(make_spec, tmp_path_factory) -> dict[str, Artifact]:
    """Trained adapters of two and of another task."""
    artifacts = {}
    for seed, task in enumerate(("two", "three")):
        folder = tmp_path_factory.mktemp(task)
        train(make_spec(task=task, seed=seed), folder)
        artifacts[task] = Artifact(str(folder / "model.safetensors"), f"sha-{task}")
    return artifacts


@pytest.fixture
def spec_of(make_spec, sources):
    def make(**changes):
        return make_spec("fusion", fusion=FusionConfig(**changes), sources=sources)

    return make


def tokens() -> dict[str, Tensor]:
    ids = torch.randint(5, 90, (4, 9), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def states(model: TaskModel) -> list[Tensor]:
    """What each layer of the backbone gives."""
    with torch.no_grad():
        return model.eval().backbone(**tokens(), output_hidden_states=True).hidden_states


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_trains_from_start_to_end(spec_of, tmp_path, variant):
    spec = spec_of(variant=variant)
    record = train(spec, tmp_path)
    assert record["status"] == "finished"
    assert record["frozen_sha256"]["before"] == record["frozen_sha256"]["after"]
    assert ("attention" in record) == (variant in ("dynamic", "static", "frozen_value"))
    saved = {n.split(".")[-2] for n in load_file(tmp_path / "model.safetensors") if "fusion" in n}
    expected = {
        "dynamic": {"query", "key", "value"},
        "static": {"query", "key"},
        "frozen_value": {"query", "key"},
        "scalars": {"0", "1"},
        "concatenation": {"0", "1"},
    }
    assert saved == expected.get(variant, set())


@pytest.mark.parametrize("variant", [*MIXERS, "average_parameters"])
def test_mixers_have_no_penalty(spec_of, variant):
    model = build_model(spec_of(variant=variant, penalty=5.0), INFO)
    randomise(model.fusion, 1.0)
    assert model.penalty().item() == 0


def test_the_penalty_of_what_attends_is_not_zero(spec_of):
    model = build_model(spec_of(penalty=5.0), INFO)
    randomise(model.fusion, 1.0)
    assert model.penalty().item() > 1


def test_without_the_last_layer_it_stays_as_it_is(spec_of, bert):
    fused = build_model(spec_of(drop_last=True), INFO)
    whole = build_model(spec_of(), INFO)
    plain = load_backbone(bert.path)
    assert len(fused.fusion.layers) == 1 and len(whole.fusion.layers) == 2
    last = fused.backbone.encoder.layer[-1]
    assert type(last.output) is type(plain.encoder.layer[-1].output)
    before, middle, end = states(fused)
    with torch.no_grad():
        mask = torch.zeros(4, 1, 1, 9)
        own = plain.eval().encoder.layer[-1](middle, attention_mask=mask)
    close(end, own if isinstance(own, Tensor) else own[0])
    assert torch.equal(before, states(whole)[0])
    close(middle, states(whole)[1])
    assert not torch.allclose(end, states(whole)[2], atol=1e-3)


def test_no_fusion_without_the_last_of_one_layer():
    with pytest.raises(ValueError, match="the last of one layer"):
        TaskFusion(8, 1, FusionConfig(drop_last=True))


def test_attention_without_the_last_layer_has_a_row_less(spec_of, tmp_path):
    record = train(spec_of(drop_last=True), tmp_path)
    assert np.shape(record["attention"]["layers"]) == (1, 2)
    names = load_file(tmp_path / "model.safetensors")
    assert {n.split(".")[2] for n in names if n.startswith("fusion")} == {"0"}


def test_random_others_are_untrained_and_the_own_adapter_is_kept(spec_of, bert):
    backbone = load_backbone(bert.path)
    torch.manual_seed(0)
    trained = dict(zip(("two", "three"), source_adapters(spec_of(), backbone), strict=True))
    mixed = source_adapters(spec_of(random_others=True), backbone)
    mixed = dict(zip(("two", "three"), mixed, strict=True))
    for name, parameter in mixed["two"].named_parameters():
        assert torch.equal(parameter, trained["two"].get_parameter(name))
    for name, parameter in mixed["three"].named_parameters():
        assert parameter.shape == trained["three"].get_parameter(name).shape
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            assert not torch.equal(parameter, trained["three"].get_parameter(name))
            assert parameter.std().item() == pytest.approx(0.02, rel=0.25)


def test_random_others_are_drawn_by_the_runs_seed(spec_of):
    spec = spec_of(random_others=True)
    hashes = [
        build_model(dataclasses.replace(spec, seed=seed), INFO).frozen_sha256()
        for seed in (1, 1, 2)
    ]
    assert hashes[0] == hashes[1] != hashes[2]
    plain = [
        build_model(dataclasses.replace(spec_of(), seed=s), INFO).frozen_sha256() for s in (1, 2)
    ]
    assert plain[0] == plain[1] != hashes[0]


def test_a_frozen_value_is_not_trained_and_equals_static_fusion(spec_of):
    frozen = build_model(spec_of(variant="frozen_value"), INFO)
    static = build_model(spec_of(variant="static"), INFO)
    assert not any(".value." in name for name in frozen.trainable())
    assert frozen.trainable().keys() == static.trainable().keys()
    with torch.no_grad():
        for name, parameter in static.trainable().items():
            frozen.get_parameter(name).copy_(parameter)
    for ours, theirs in zip(states(frozen), states(static), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("drop_last", [False, True])
def test_attention_is_recorded_where_the_fusion_attends(spec_of, drop_last):
    model = build_model(spec_of(drop_last=drop_last), INFO).eval()
    with record_attention(model.fusion) as layers, torch.no_grad():
        model.encode(tokens())
    assert [tuple(a.shape) for a in layers] == [(4, 9, 2)] * (2 - drop_last)
    for a in layers:
        close(a.sum(-1), torch.ones(4, 9))


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_variant_says_of_attending_is_true(variant):
    fusion = TaskFusion(D, 2, FusionConfig(variant), N)
    assert fusion.attends == all(isinstance(layer, Fusion) for layer in fusion.layers)
    assert fusion.attends == (variant in ("dynamic", "static", "frozen_value"))


@pytest.mark.parametrize("variant", MIXERS)
def test_a_mixer_learns_what_it_trains_and_the_bank_gets_no_gradient(adapters, y, variant):
    layer = FusedAdapters(AdapterBank(adapters), mixer(variant, D, N))
    layer(y.requires_grad_()).square().sum().backward()
    assert all(p.grad is None for p in layer.bank.parameters())
    learned = list(layer.fusion.parameters())
    assert len(learned) == (variant != "average")
    assert all(p.grad is not None and p.grad.any() for p in learned)


def test_a_run_of_scalars_moves_them_from_the_average(spec_of, tmp_path):
    run = Run(spec_of(variant="scalars"), tmp_path)
    assert not run.model.fusion.layers[0].scores.any()
    run.finish()
    assert run.state.kept["fusion.layers.0.scores"].any()
