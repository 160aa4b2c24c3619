"""AdapterFusion side by side: ours, the `adapters` library and PEFT, alternating in one run.

    python benchmarks/bench.py [--quick] [--again] [--compile] [--only TEXT] [--threads N]

Each model lives in a process of its own (`worker.py`), and they take turns, one step each, so that
a busy machine slows all of them alike; ratios are taken within a turn. A group of models that are
compared is measured together and stored at once in results/<device>.json: interrupted, the command
goes on with the groups that are missing. The peer's environment is made under build/; on a machine
that cannot make it, it is left out.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "tests" / "golden"))
import compare_live  # noqa: E402  (the oracle's environment is the peer's environment here)

ADAPTERS = (1, 2, 4, 8, 16, 32)
PLAIN = "ours, PyTorch's kernels"
PEFT = "peft==0.21.2"


@dataclass(frozen=True)
class Model:
    """One line of the comparison. n: number of fused adapters."""

    library: str
    method: str
    n: int = 0

    @property
    def name(self) -> str:
        return f"{self.library} {self.method}" + (f" n={self.n}" if self.n else "")


@dataclass(frozen=True)
class Group:
    """Models that are measured in turns. seconds: no further turn starts after so many."""

    backbone: str
    mode: str
    rows: int
    tokens: int
    precision: str
    what: str
    models: tuple[Model, ...] = field(repr=False)
    turns: int = 3
    seconds: float = 240
    compile: bool = False

    @property
    def key(self) -> str:
        shape, compiled = f"{self.rows}x{self.tokens}", "+compile" if self.compile else ""
        return f"{self.backbone} {self.mode} {shape} {self.precision}{compiled} {self.what}"

    def case(self, model: Model) -> dict[str, Any]:
        names = ("backbone", "mode", "rows", "tokens", "precision", "compile")
        return {name: getattr(self, name) for name in names} | asdict(model)


def group(backbone: str, mode: str, rows: int, tokens: int, precision: str, n: int) -> Group:
    """Ours and theirs with n adapters beside our full fine-tuning (or the plain backbone)."""
    models = [Model("ours", "fusion", n), Model("adapters", "fusion", n), Model("ours", "full")]
    headline = n == 16 and (rows, precision) == (8, "float32")
    if headline:  # elsewhere left out, where the peer needs the memory
        models.append(Model(PLAIN, "fusion", n))
    turns = 5 if headline else 3
    return Group(backbone, mode, rows, tokens, precision, f"n={n}", tuple(models), turns)


def references(backbone: str, mode: str, rows: int, tokens: int, precision: str) -> Group:
    """Ours with 16 adapters beside everything that is no fusion, and beside itself with two."""
    models = (
        Model("ours", "fusion", 16),
        Model("ours", "fusion", 2),
        Model("ours", "full"),
        Model("ours", "head"),
        Model("ours", "adapter"),
        Model("adapters", "adapter"),
        Model("peft", "lora"),
    )
    return Group(backbone, mode, rows, tokens, precision, "references", models, turns=9)


def groups(quick: bool) -> list[Group]:
    """The headline first, then the curves over the number of adapters, then the rest."""
    shapes = [(8, 128)] if quick else [(8, 128), (32, 64)]
    backbones = ["minilm"] if quick else ["bert-base", "minilm"]
    chosen = []
    for precision in ["float32"] if quick else ["float32", "bfloat16"]:
        for rows, tokens in shapes:
            for backbone in backbones:
                cases = [(backbone, mode, rows, tokens, precision) for mode in ("train", "infer")]
                chosen += [group(*case, 16) for case in cases]
                chosen += [references(*case) for case in cases[:1]]
                others = [2] if quick else [n for n in ADAPTERS if n != 16]
                chosen += [group(*case, n) for case in cases for n in others]
    return chosen


class Worker:
    """A process that holds one model."""

    def __init__(self, python: Path, library: str, case: dict[str, Any], threads: int):
        environment = os.environ | {
            "PYTHONPATH": str(ROOT / "src"),
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore",
        }
        command = [python, HERE / "worker.py", library, json.dumps(case)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"worker ended with {self.process.wait()}")
        return json.loads(line)

    def step(self) -> dict[str, float]:
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return self.read()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def measure(group: Group, pythons: dict[str, Path], threads: int) -> dict[str, Any]:
    """Each model's facts and its times, turn by turn."""
    models = [model for model in group.models if model.library in pythons]
    results: dict[str, Any] = {}
    workers: dict[str, Worker] = {}
    try:
        for model in models:  # one after the other: a warm-up is a measurement of memory
            case = group.case(model)
            worker = Worker(pythons[model.library], model.library, case, threads)
            workers[model.name] = worker
            results[model.name] = worker.read() | {"turns": []}
        began = time.perf_counter()
        for _ in range(group.turns):
            for name, worker in workers.items():
                results[name]["turns"].append(worker.step())
            if time.perf_counter() - began > group.seconds:
                break
    finally:
        for worker in workers.values():
            worker.close()
    return results


def find_pythons() -> dict[str, Path]:
    """Which interpreter runs which library; says what cannot be had."""
    ours = Path(sys.executable)
    pythons = {"ours": ours, PLAIN: ours}
    try:
        compare_live.make_environment()
        pythons["adapters"] = compare_live.PYTHON
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"without the peer: its environment cannot be made here ({error})")
        return pythons
    has_peft = [compare_live.PYTHON, "-c", "import peft"]
    install = [compare_live.PYTHON, "-m", "pip", "install", "--quiet", PEFT]
    if all(subprocess.run(c, capture_output=True).returncode for c in (has_peft, install)):
        print("without PEFT: it cannot be installed beside the peer")
    else:
        pythons["peft"] = compare_live.PYTHON
    return pythons


def ratio(results: dict[str, Any], above: str, below: str, what: str) -> dict[str, float] | None:
    """Median and range of above ÷ below, turn by turn; memory has one value for all turns."""
    if above not in results or below not in results:
        return None
    if what.endswith("mib"):
        pairs = [(results[above][what], results[below][what])]
    else:
        turns = zip(results[above]["turns"], results[below]["turns"], strict=True)
        pairs = [(a[what], b[what]) for a, b in turns if what in a]
    if not pairs:
        return None
    values = sorted(a / b for a, b in pairs)
    return {"median": statistics.median(values), "lowest": values[0], "highest": values[-1]}


OURS, PEER = "ours fusion n=16", "adapters fusion n=16"
RATIOS = [  # title, group, above, below, quantity
    ("fusion, training step: adapters ÷ ours", "train {} n=16", PEER, OURS, "seconds"),
    ("fusion, inference: adapters ÷ ours", "infer {} n=16", PEER, OURS, "seconds"),
    (
        "the same, training, PyTorch's kernels",
        "train {} n=16",
        PEER,
        f"{PLAIN} fusion n=16",
        "seconds",
    ),
    (
        "the same, inference, PyTorch's kernels",
        "infer {} n=16",
        PEER,
        f"{PLAIN} fusion n=16",
        "seconds",
    ),
    (
        "training step: fusion ÷ full fine-tuning",
        "train {} references",
        OURS,
        "ours full",
        "seconds",
    ),
    ("inference: fusion ÷ plain backbone", "infer {} n=16", OURS, "ours full", "seconds"),
    ("training step: N = 16 ÷ N = 2", "train {} references", OURS, "ours fusion n=2", "seconds"),
    ("saved activations: adapters ÷ ours", "train {} n=16", PEER, OURS, "saved_mib"),
    ("peak memory: adapters ÷ ours", "train {} n=16", PEER, OURS, "peak_memory_mib"),
    (
        "ST-A, training step: adapters ÷ ours",
        "train {} references",
        "adapters adapter",
        "ours adapter",
        "seconds",
    ),
    (
        "training step: LoRA (PEFT) ÷ our ST-A",
        "train {} references",
        "peft lora",
        "ours adapter",
        "seconds",
    ),
]


def summary(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """The ratios, wherever their group has been measured."""
    rows = []
    settings = {tuple(key.split(" ")[i] for i in (0, 2, 3)) for key in measured}
    for backbone, shape, precision in sorted(settings, key=lambda s: (s[2] != "float32", s)):
        for title, where, above, below, what in RATIOS:
            results = measured.get(f"{backbone} {where.format(f'{shape} {precision}')}")
            wall = results and ratio(results["models"], above, below, what)
            if not wall:
                continue
            row = {"setting": f"{backbone} {shape} {precision}", "ratio": title} | wall
            if what == "seconds":
                processor = ratio(results["models"], above, below, "processor_seconds")
                row |= {"processor": processor and processor["median"]}
            rows.append(row)
    return rows


def as_markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| setting | N = 16 | median | range | by processor time |", "|---|---|---|---|---|"]
    for row in rows:
        processor = row.get("processor")
        lines.append(
            f"| {row['setting']} | {row['ratio']} | {row['median']:.2f} "
            f"| {row['lowest']:.2f}–{row['highest']:.2f} | {f'{processor:.2f}' if processor else ''} |"
        )
    return "\n".join(lines)


def processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def device_name() -> str:
    """The GPU's name, or the processor's."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor_name()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="MiniLM sizes, few groups: minutes")
    parser.add_argument("--again", action="store_true", help="measure what is there already, too")
    parser.add_argument("--compile", action="store_true", help="all models by torch.compile")
    parser.add_argument("--only", default="", metavar="TEXT", help="groups whose name holds TEXT")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    pythons = find_pythons()
    device = device_name()
    name = "-".join([*device.lower().split(), *(["quick"] if args.quick else [])])
    path = HERE / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    stored = json.loads(path.read_text()) if path.is_file() else {"device": device, "groups": {}}
    chosen = [replace(g, compile=args.compile) for g in groups(args.quick)]
    chosen = [g for g in chosen if args.only in g.key]
    for i, one in enumerate(chosen):
        if one.key in stored["groups"] and not args.again:
            continue
        print(f"[{i + 1}/{len(chosen)}] {one.key}", flush=True)
        results = measure(one, pythons, args.threads)
        for model, result in results.items():
            seconds = [turn["seconds"] for turn in result["turns"]]
            print(f"    {model:42s} {statistics.median(seconds):8.3f} s", flush=True)
        stored["groups"][one.key] = {"threads": args.threads, "models": results}
        stored["ratios"] = summary(stored["groups"])
        path.write_text(json.dumps(stored, indent=1) + "\n")
    print(as_markdown(stored.get("ratios", [])))
    try:
        import figure
    except ImportError as error:
        print(f"without the figure: {error}")
    else:
        figure.draw(stored, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
