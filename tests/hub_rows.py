"""Invented rows in the exact schema that the hub has for each of the paper's tasks."""

import json

import pyarrow as pa

NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal")
ACTS = ("sold a lamp", "ran home", "baked bread", "fixed a bike", "sang a song", "drew a map")
TEXT, LIST = pa.string(), pa.list_(pa.string())

# task -> (columns in the hub's order, label column, what it says, names of a ClassLabel if it is one)
_PAIR = {"sentence1": TEXT, "sentence2": TEXT, "label": pa.int64(), "idx": pa.int32()}
_NLI = {"premise": TEXT, "hypothesis": TEXT}
_THREE = ["entailment", "neutral", "contradiction"]
SCHEMAS = {
    "mnli": (_NLI | {"label": pa.int64(), "idx": pa.int32()}, "label", [0, 1, 2], _THREE),
    "qqp": (
        {"question1": TEXT, "question2": TEXT, "label": pa.int64(), "idx": pa.int32()},
        *("label", [0, 1], ["not_duplicate", "duplicate"]),
    ),
    "sst2": (
        {"sentence": TEXT, "label": pa.int64(), "idx": pa.int32()},
        *("label", [0, 1], ["negative", "positive"]),
    ),
    "winogrande": (
        {"sentence": TEXT, "option1": TEXT, "option2": TEXT, "answer": TEXT},
        *("answer", ["1", "2"], None),
    ),
    "imdb": ({"text": TEXT, "label": pa.int64()}, "label", [0, 1], ["neg", "pos"]),
    "hellaswag": (
        {
            "ind": pa.int32(),
            "activity_label": TEXT,
            "ctx_a": TEXT,
            "ctx_b": TEXT,
            "ctx": TEXT,
            "endings": LIST,
            "source_id": TEXT,
            "split": TEXT,
            "split_type": TEXT,
            "label": TEXT,
        },
        *("label", ["0", "1", "2", "3"], None),
    ),
    "socialiqa": (
        {"context": TEXT, "question": TEXT} | {f"answer{c}": TEXT for c in "ABC"} | {"label": TEXT},
        *("label", ["1", "2", "3"], None),
    ),
    "cosmosqa": (
        {"id": TEXT, "context": TEXT, "question": TEXT}
        | {f"answer{i}": TEXT for i in range(4)}
        | {"label": pa.int32()},
        *("label", [0, 1, 2, 3], None),
    ),
    "scitail": (_NLI | {"label": TEXT}, "label", ["entails", "neutral"], None),
    "csqa": (
        {
            "id": TEXT,
            "question": TEXT,
            "question_concept": TEXT,
            "choices": pa.struct({"label": LIST, "text": LIST}),
            "answerKey": TEXT,
        },
        *("answerKey", ["A", "B", "C", "D", "E"], None),
    ),
    "boolq": (
        {"question": TEXT, "passage": TEXT, "idx": pa.int32(), "label": pa.int64()},
        *("label", [0, 1], ["False", "True"]),
    ),
    "mrpc": (_PAIR, "label", [0, 1], ["not_equivalent", "equivalent"]),
    "sick": (
        {
            "id": TEXT,
            "sentence_A": TEXT,
            "sentence_B": TEXT,
            "label": pa.int64(),
            "relatedness_score": pa.float32(),
            "entailment_AB": TEXT,
            "entailment_BA": TEXT,
            "sentence_A_original": TEXT,
            "sentence_B_original": TEXT,
            "sentence_A_dataset": TEXT,
            "sentence_B_dataset": TEXT,
        },
        *("label", [0, 1, 2], _THREE),
    ),
    "rte": (_PAIR, "label", [0, 1], ["entailment", "not_entailment"]),
    "cb": (
        _NLI | {"idx": pa.int32(), "label": pa.int64()},
        *("label", [0, 1, 2], ["entailment", "contradiction", "neutral"]),
    ),
}


def sentence(i: int, column: str) -> str:
    """An invented sentence that tells row and column apart."""
    return f"{NAMES[i % 8]} {ACTS[i % 6]} ({column} {i})"


def _cell(column: str, kind: pa.DataType, i: int):
    if column == "sentence" and kind == TEXT:
        return f"{NAMES[i % 8]} thanked _ in row {i}"
    if column == "endings":
        return [sentence(i, f"ending {n}") for n in range(4)]
    if pa.types.is_struct(kind):
        return {"label": list("ABCDE"), "text": [sentence(i, f"choice {n}") for n in range(5)]}
    return sentence(i, column) if kind == TEXT else i


def table(task: str, rows: int) -> pa.Table:
    """`rows` rows as the hub has them; labels take turns."""
    columns, label, values, names = SCHEMAS[task]
    cells = {
        column: [
            values[i % len(values)] if column == label else _cell(column, kind, i)
            for i in range(rows)
        ]
        for column, kind in columns.items()
    }
    features = {c: {"dtype": str(kind), "_type": "Value"} for c, kind in columns.items()}
    if names:
        features[label] = {"names": names, "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table(cells, schema=pa.schema(columns, metadata))
