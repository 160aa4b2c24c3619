"""One model of the benchmark: a process that builds it and then takes a step whenever it is told to.

    python benchmarks/worker.py LIBRARY CASE      (started by bench.py, in either environment)

LIBRARY is one of BUILDERS, CASE a JSON object. The process answers on its standard output, one JSON
object a line: first what the model is and needs, then, for each line it reads, how long a step took.
Weights and inputs are random: no time depends on their values.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

# Sizes only: nothing is downloaded.
BACKBONES = {
    "bert-base": {},
    "minilm": {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536},
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CLASSES = 2
CUDA_STEPS = 10
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Built = tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor], Callable[[], Tensor | None]]


def config_of(case: dict[str, Any]) -> transformers.BertConfig:
    return transformers.BertConfig(**BACKBONES[case["backbone"]], attn_implementation="sdpa")


def build_ours(case: dict[str, Any]) -> Built:
    """The model of a training run: logits of a batch, and the fusion's penalty."""
    from adapterfusion.kernels import keep_freed_memory

    keep_freed_memory()
    return build_model(case)


def build_model(case: dict[str, Any]) -> Built:
    from adapterfusion.adapter import TaskAdapter
    from adapterfusion.config import AdapterConfig, FusionConfig
    from adapterfusion.fusion import TaskFusion
    from adapterfusion.model import TaskModel

    config = config_of(case)
    size = config.hidden_size, config.num_hidden_layers
    model = TaskModel(transformers.BertModel(config, add_pooling_layer=False), CLASSES)
    if case["method"] == "head":
        model.with_frozen_backbone()
    elif case["method"] == "adapter":
        model.with_adapter(TaskAdapter(*size, AdapterConfig()))
    elif case["method"] == "fusion":
        adapters = [TaskAdapter(*size, AdapterConfig()) for _ in range(case["n"])]
        model.with_fusion(TaskFusion(*size, FusionConfig()), adapters)
    return model, model, model.penalty


def build_ours_with_pytorch_kernels(case: dict[str, Any]) -> Built:
    """The same without `kernels`: what the formula alone gives on a CPU."""
    from adapterfusion import model

    model.cpu_kernels = lambda device: nullcontext()
    return build_model(case)


def build_adapters(case: dict[str, Any]) -> Built:
    """The same with the `adapters` library, as its documentation trains it."""
    from adapters import BertAdapterModel, SeqBnConfig
    from adapters.composition import Fuse

    model = BertAdapterModel(config_of(case))
    model.add_classification_head("task", num_labels=CLASSES)
    names = [f"task{i}" for i in range(case["n"] or 1)]
    penalty = lambda: None  # noqa: E731
    if case["method"] in ("adapter", "fusion"):
        for name in names:
            model.add_adapter(name, config=SeqBnConfig(reduction_factor=16))
    if case["method"] == "adapter":
        model.train_adapter(names[0])
    elif case["method"] == "fusion":
        setup = Fuse(*names)
        model.add_adapter_fusion(setup, "dynamic")
        model.train_adapter_fusion(setup)
        penalty = model.base_model.get_fusion_regularization_loss
    elif case["method"] == "head":
        model.base_model.requires_grad_(False)
    model.active_head = "task"
    return model, lambda batch: model(**batch).logits, penalty


def build_peft(case: dict[str, Any]) -> Built:
    """LoRA on query and value, rank 8: PEFT's defaults for BERT."""
    from peft import LoraConfig, get_peft_model

    model = transformers.BertForSequenceClassification(config_of(case))
    model = get_peft_model(
        model, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"])
    )
    return model, lambda batch: model(**batch).logits, lambda: None


BUILDERS = {
    "ours": build_ours,
    "ours, PyTorch's kernels": build_ours_with_pytorch_kernels,
    "adapters": build_adapters,
    "peft": build_peft,
}
PACKAGES = {
    "ours": ("torch", "transformers"),
    "ours, PyTorch's kernels": ("torch", "transformers"),
    "adapters": ("torch", "transformers", "adapters"),
    "peft": ("torch", "transformers", "peft"),
}


class Stepper:
    """A model, an optimizer and one batch: a training step or an inference pass at a time."""

    def __init__(self, library: str, case: dict[str, Any]):
        torch.manual_seed(0)
        self.case = case
        self.model, self.logits, self.penalty = BUILDERS[library](case)
        self.model.to(DEVICE).train(case["mode"] == "train")
        if case["compile"]:
            self.model.compile()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        if case["mode"] == "train":
            self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)
        shape = (case["rows"], case["tokens"])
        generator = torch.Generator().manual_seed(0)
        self.batch = {
            "input_ids": torch.randint(1000, 20_000, shape, generator=generator).to(DEVICE),
            "attention_mask": torch.ones(shape, dtype=torch.long, device=DEVICE),
        }
        self.labels = (torch.arange(case["rows"]) % CLASSES).to(DEVICE)

    def _autocast(self) -> torch.autocast:
        dtype = DTYPES[self.case["precision"]]
        return torch.autocast(DEVICE.type, dtype, enabled=dtype != torch.float32)

    def _loss(self) -> Tensor:
        with self._autocast():
            loss = F.cross_entropy(self.logits(self.batch).float(), self.labels)
        penalty = self.penalty()
        return loss if not isinstance(penalty, Tensor) else loss + penalty

    def step(self) -> None:
        if self.case["mode"] == "train":
            self._loss().backward()
            torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            with torch.inference_mode(), self._autocast():
                self.logits(self.batch)

    def timed(self) -> dict[str, float]:
        """Wall and processor seconds of a step; on CUDA the mean of ten, between two events."""
        processor = time.process_time()
        if DEVICE.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(CUDA_STEPS):
                self.step()
            end.record()
            torch.cuda.synchronize()
            return {"seconds": start.elapsed_time(end) / 1000 / CUDA_STEPS}
        began = time.perf_counter()
        self.step()
        return {
            "seconds": time.perf_counter() - began,
            "processor_seconds": time.process_time() - processor,
        }

    def saved_mib(self) -> float:
        """What a forward pass keeps for its backward pass, parameters and buffers left out."""
        state = [*self.model.parameters(), *self.model.buffers(), *self.batch.values()]
        known = {t.untyped_storage().data_ptr() for t in state}
        kept: dict[int, Tensor] = {}

        def pack(tensor: Tensor) -> Tensor:
            pointer = tensor.untyped_storage().data_ptr()
            if pointer not in known:
                kept[pointer] = tensor  # holding it makes sure that no other gets its address
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            self._loss()
        return sum(t.untyped_storage().nbytes() for t in kept.values()) / 2**20


def peak_memory_mib() -> float | None:
    """This process's peak: allocated on CUDA, elsewhere resident (None where nothing tells)."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    return (
        int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10 if status.exists() else None
    )


def facts(library: str, stepper: Stepper) -> dict[str, Any]:
    """What bench.py notes beside the times: memory is that of the warm-up."""
    return {
        "peak_memory_mib": peak_memory_mib(),
        "saved_mib": stepper.saved_mib() if stepper.case["mode"] == "train" else None,
        "trained_parameters": sum(p.numel() for p in stepper.trained),
        "packages": {name: version(name) for name in PACKAGES[library]},
        "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
    }


def main() -> None:
    library, case = sys.argv[1], json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    logging.disable(logging.WARNING)
    stepper = Stepper(library, case)
    for _ in range(CUDA_STEPS if DEVICE.type == "cuda" else 1):
        stepper.step()
    print(json.dumps(facts(library, stepper)), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(stepper.timed()), file=answers, flush=True)


if __name__ == "__main__":
    main()
