"""The task model: what it leaves out of the last layer changes no logit and no gradient."""

import numpy as np
import pytest
import torch
from test_adapter import task_adapter
from test_fusion import a_split, randomise

from adapterfusion.batches import collate
from adapterfusion.config import FusionConfig
from adapterfusion.fusion import TaskFusion, record_attention
from adapterfusion.model import TaskModel, load_backbone

STAGES = ["full", "head", "pfeiffer", "houlsby", "fusion"]


def staged(folder, stage: str) -> TaskModel:
    torch.manual_seed(0)
    model = TaskModel(load_backbone(folder), 2)
    if stage == "head":
        model.with_frozen_backbone()
    elif stage in ("pfeiffer", "houlsby"):
        model.with_adapter(task_adapter(stage))
    elif stage == "fusion":
        fusion = randomise(TaskFusion(32, 2, FusionConfig()), 0.2, seed=7)
        model.with_fusion(fusion, [task_adapter(seed=seed) for seed in (1, 2, 3)])
    return model.eval()


def test_a_backbone_is_read_once_and_each_caller_has_its_own(bert, monkeypatch):
    first = load_backbone(bert.path)
    with torch.no_grad():
        first.embeddings.word_embeddings.weight.zero_()
    monkeypatch.setattr("transformers.AutoModel.from_pretrained", None)
    second = load_backbone(bert.path)
    assert second.embeddings.word_embeddings.weight.any()


@pytest.mark.parametrize("stage", STAGES)
def test_encoding_equals_the_whole_backbone_in_value_and_gradient(saved, stage):
    model = staged(saved.path, stage)
    batch = collate(a_split(), np.arange(4), pad_id=1)
    del batch["labels"]
    results = []
    for encode in (model.encode, lambda b: model.backbone(**b).last_hidden_state[:, 0]):
        model.zero_grad(set_to_none=True)
        first = encode(batch)
        model.head(first).square().sum().backward()
        grads = {n: p.grad for n, p in model.trainable().items() if p.grad is not None}
        results.append(grads | {"first": first.detach()})
    ours, whole = results
    assert ours.keys() == whole.keys()
    for name, expected in whole.items():
        difference = (ours[name] - expected).norm()
        assert difference <= 1e-4 * expected.norm() + 1e-5, name


def test_attention_is_recorded_of_every_token_and_then_no_longer(bert):
    model = staged(bert.path, "fusion")
    batch = collate(a_split(), np.arange(4), pad_id=0)
    shapes = []
    handle = model.fusion.layers[-1].query.register_forward_hook(
        lambda _module, inputs, _output: shapes.append(inputs[0].shape[-2])
    )
    for layer in model.fusion.layers:
        layer.implementation = "reference"  # which calls `query` itself
    with record_attention(model.fusion) as recorded, torch.no_grad():
        recording = model(batch)
    with torch.no_grad():
        torch.testing.assert_close(model(batch), recording)
    handle.remove()
    assert [a.shape[1] for a in recorded] == [20, 20]
    assert shapes == [20, 1]


def test_backbone_has_its_own_forward_pass_again_after_an_encoding(bert):
    model = staged(bert.path, "full")
    batch = collate(a_split(), np.arange(4), pad_id=0)
    model.encode(batch)
    with torch.no_grad():
        states = model.backbone(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    assert states.shape == (4, 20, 32)
