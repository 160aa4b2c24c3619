"""The method on one sentence, for the first notebook: untrained adapters, an untrained fusion."""

import pandas as pd
import torch
from transformers import AutoTokenizer

from adapterfusion.adapter import TaskAdapter
from adapterfusion.backbone import resolve_backbone
from adapterfusion.config import Config
from adapterfusion.fusion import TaskFusion, record_attention
from adapterfusion.inject import eject, inject_adapter, inject_fusion
from adapterfusion.model import load_backbone

N = 3


def _parts(config: Config, sentence: str):
    """Backbone, encoded sentence, three new adapters and a new fusion, all from one seed."""
    folder, _ = resolve_backbone(config.backbone)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    backbone = load_backbone(folder).eval()
    torch.manual_seed(0)
    size = (backbone.config.hidden_size, backbone.config.num_hidden_layers)
    adapters = [TaskAdapter(*size, config.adapter) for _ in range(N)]
    return backbone, tokenizer, tokenizer(sentence, return_tensors="pt"), adapters, size


@torch.inference_mode()
def attention_table(config: Config, sentence: str) -> pd.DataFrame:
    """Tokens in rows, adapters in columns: the first layer's attention of an untrained fusion."""
    backbone, tokenizer, inputs, adapters, size = _parts(config, sentence)
    fusion = TaskFusion(*size, config.fusion)
    inject_fusion(backbone, fusion, adapters)
    with record_attention(fusion) as per_layer:
        backbone(**inputs)
    tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    columns = [f"adapter {n + 1}" for n in range(N)]
    return pd.DataFrame(per_layer[0][0].numpy(), tokens, columns).round(3)


@torch.inference_mode()
def uniform_start(config: Config, sentence: str) -> str:
    """How far an untrained fusion of one adapter with itself is from that adapter alone."""
    backbone, _, inputs, adapters, size = _parts(config, sentence)
    inject_adapter(backbone, adapters[0])
    alone = backbone(**inputs).last_hidden_state
    eject(backbone)
    inject_fusion(backbone, TaskFusion(*size, config.fusion), [adapters[0]] * N)
    fused = backbone(**inputs).last_hidden_state
    largest = float((alone - fused).abs().max())
    return (
        f"Fusing {N} copies of one adapter instead of using it alone moves no value of the last "
        f"hidden state by more than {largest:.0e} (values there have a size of about "
        f"{float(alone.abs().mean()):.1f})."
    )
