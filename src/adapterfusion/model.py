"""A task's model: backbone, what was injected into it, and a head on the first token.

Several tasks at once are several such models whose backbones share their parameters.
"""

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from adapterfusion.adapter import TaskAdapter
from adapterfusion.fusion import TaskFusion
from adapterfusion.inject import inject_adapter, inject_fusion
from adapterfusion.kernels import cpu_kernels


@lru_cache(maxsize=1)
def _read_backbone(folder: Path) -> nn.Module:
    # the unused pooler would be announced, with a progress bar, at every load
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers.AutoModel.from_pretrained(
        folder, dtype=torch.float32, add_pooling_layer=False
    )


def load_backbone(folder: Path) -> nn.Module:
    """The encoder in float32 without a pooler: the head reads the first token's last state.

    A copy: a process that trains many runs reads the same folder once.
    """
    return copy.deepcopy(_read_backbone(folder))


class Head(nn.Sequential):
    """dropout, dense, tanh, dropout, dense: the prediction head of the public code.

    The paper does not describe its head. One more choice it leaves open: fusion gets a new head.
    """

    def __init__(self, hidden_size: int, n_outputs: int, dropout: float = 0.1):
        super().__init__(
            nn.Dropout(dropout),
            nn.Linear(hidden_size, hidden_size),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, n_outputs),
        )
        for linear in (self[1], self[4]):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)


class Trained(nn.Module):
    """What a run needs of a model: which parameters are trained, and proof that no other moved."""

    def penalty(self) -> Tensor | None:
        """A term of the loss beside the task's, where there is one."""
        return None

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that is trained, saved and counted."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def frozen_sha256(self) -> str:
        """One hash over all frozen parameters, names included: equal before and after training."""
        digest = hashlib.sha256()
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                digest.update(name.encode())
                values = parameter.detach().cpu().contiguous().flatten()
                digest.update(values.view(torch.uint8).numpy().data)
        return digest.hexdigest()


class TaskModel(Trained):
    """Backbone + head for one task, with at most one of adapter and fusion injected.

    Head, adapter and fusion are registered before the backbone they are injected into, so that a
    parameter has one name (`adapter.output.0.down.weight`) whether or not it sits in a layer too.

    choices: number of choices for multiple choice (one sequence and one logit each), else None.
    """

    def __init__(self, backbone: nn.Module, n_outputs: int, choices: int | None = None):
        super().__init__()
        self.choices = choices
        self.head = Head(backbone.config.hidden_size, n_outputs)
        self.adapter: TaskAdapter | None
        self.fusion: TaskFusion | None
        self.register_module("adapter", None)
        self.register_module("fusion", None)
        self.backbone = backbone

    def _freeze_backbone(self) -> None:
        self.backbone.requires_grad_(False)

    def with_frozen_backbone(self) -> "TaskModel":
        """Train the head alone."""
        self._freeze_backbone()
        return self

    def with_adapter(self, adapter: TaskAdapter) -> "TaskModel":
        """Stage 1: freeze the backbone (Theta), inject an adapter (Phi) to be trained."""
        self._freeze_backbone()
        return self.with_trained_backbone(adapter)

    def with_trained_backbone(self, adapter: TaskAdapter | None) -> "TaskModel":
        """Train all of it, with an adapter inside where one is given."""
        if adapter is not None:
            inject_adapter(self.backbone, adapter)
            self.adapter = adapter
        return self

    def with_fusion(self, fusion: TaskFusion, adapters: list[TaskAdapter]) -> "TaskModel":
        """Stage 2: freeze backbone and adapters (Theta, Phi), inject a fusion (Psi) to be trained."""
        self._freeze_backbone()
        inject_fusion(self.backbone, fusion, adapters)
        self.fusion = fusion
        return self

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits [batch, classes].

        batch: `input_ids`, `attention_mask`, `token_type_ids`, each [batch * choices, tokens]; or
            `features` [batch * choices, d], when the frozen backbone's output is known already.
        """
        first = batch["features"] if "features" in batch else self.encode(batch)
        with cpu_kernels(first.device):
            logits = self.head(first)
        return logits.view(-1, self.choices) if self.choices else logits

    def encode(self, batch: dict[str, Tensor]) -> Tensor:
        """The first token's last state: [batch * choices, d]"""
        names = ("input_ids", "attention_mask", "token_type_ids")
        inputs = {name: batch[name] for name in names if name in batch}
        with cpu_kernels(batch["input_ids"].device), self._last_layer_of_first_token():
            return self.backbone(**inputs).last_hidden_state[:, 0]

    @contextmanager
    def _last_layer_of_first_token(self) -> Iterator[None]:
        """After the last attention only the first token counts: the others go no further.

        While the last fusion's attention is recorded all go on, for that is wanted of each token.
        """
        if self.fusion is not None and self.fusion.is_watched:
            yield
            return
        block = self.backbone.encoder.layer[-1].attention.output
        handle = block.register_forward_pre_hook(
            # contiguous: PyTorch multiplies a strided slice by a copy of the matrix for each row
            lambda _module, states: tuple(state[:, :1].contiguous() for state in states)
        )
        try:
            yield
        finally:
            handle.remove()

    def penalty(self) -> Tensor | None:
        """The fusion's term of the loss, where there is one."""
        if self.fusion is None or self.fusion.config.penalty == 0:
            return None
        return self.fusion.penalty()


class JointModel(Trained):
    """Several tasks on one backbone, all of it trained: multi-task learning.

    The backbone's parameters stand first and under one name (`backbone.*`); each task has its head,
    and its adapter where there is one (`tasks.rte.head.*`, `tasks.rte.adapter.*`).
    """

    def __init__(self, backbone: nn.Module, tasks: dict[str, TaskModel]):
        super().__init__()
        self.backbone = backbone
        self.tasks = nn.ModuleDict(tasks)


def shared_copy(backbone: nn.Module) -> nn.Module:
    """Modules of its own, to inject into, over the very same parameters."""
    tensors = (*backbone.parameters(), *backbone.buffers())
    return copy.deepcopy(backbone, {id(tensor): tensor for tensor in tensors})
