"""Both directions, live: is the public implementation still what the committed files say it is?

    python tests/golden/compare_live.py          (`make oracle`)

In an environment of its own (made under build/ where it is missing) adapters 1.3.0 computes the
golden files anew. They must agree with the committed ones, our tests must pass on them, and what
our `adapterhub` writes must give the peer the logits that it gives us.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / "build" / "oracle-venv"
PYTHON = ENVIRONMENT / "bin" / "python"
REQUIREMENTS = ["torch==2.13.0", "adapters==1.3.0"]  # torch first and pinned: the smaller download
TESTS = ["tests/test_golden.py", "tests/test_adapterhub.py"]


def make_environment() -> None:
    """The peer's environment; it cannot share ours, for it needs transformers 4."""
    if (ENVIRONMENT / "complete").is_file():
        return
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    for requirement in REQUIREMENTS:
        subprocess.run([PYTHON, "-m", "pip", "install", "--quiet", requirement], check=True)
    (ENVIRONMENT / "complete").touch()


def compare(fresh: Path, committed: Path) -> float:
    """The largest difference between two sets of golden files; raises where they differ in kind."""
    import torch
    from safetensors.torch import load_file

    def tensors(path: Path) -> dict[str, torch.Tensor]:
        is_safe = path.suffix == ".safetensors"
        return load_file(path) if is_safe else torch.load(path, weights_only=True)

    def files(folder: Path) -> set[Path]:
        kinds = (".json", ".bin", ".safetensors")
        return {p.relative_to(folder) for p in folder.rglob("*") if p.suffix in kinds}

    if files(fresh) != files(committed):
        raise SystemExit(f"error: not the same files: {files(fresh) ^ files(committed)}")
    worst = 0.0
    for name in sorted(files(fresh)):
        if name.suffix == ".json":
            one, other = (json.loads((folder / name).read_text()) for folder in (fresh, committed))
            if one != other:
                raise SystemExit(f"error: {name}: {one} is not {other}")
            continue
        one, other = tensors(fresh / name), tensors(committed / name)
        if list(one) != list(other):
            raise SystemExit(f"error: {name}: not the same tensors")
        for key in one:
            if not name.name.startswith("expected"):  # weights: drawn, not computed
                if not torch.equal(one[key], other[key]):
                    raise SystemExit(f"error: {name}: {key}: other weights")
                continue
            torch.testing.assert_close(one[key], other[key], atol=1e-5, rtol=1e-4)
            worst = max(worst, (one[key].double() - other[key].double()).abs().max().item())
    return worst


def write_ours(out: Path) -> None:
    """For each case a folder in the library's format, written by us, and the logits we compute.

    The weights are new ones (ours, drawn here), so that no folder of the peer can pass for it.
    """
    sys.path.insert(0, str(HERE.parent))
    import torch
    from golden_cases import CASES, build, logits, read_case
    from safetensors.torch import save_file

    from adapterfusion.adapterhub import load_head, save_adapter, save_fusion, save_head

    torch.manual_seed(0)
    for name in CASES:
        case = read_case(name)
        model = build(case)
        with torch.no_grad():
            parts = [model.head, model.adapter or model.fusion]
            for parameter in (p for part in parts for p in part.parameters()):
                parameter.add_(0.05 * torch.randn_like(parameter))
        folder, encoder = out / name, model.backbone
        head, fused = "head", "our-fusion"
        labels = load_head(case.head, encoder).labels
        known_as = f"golden/{case.backbone}"
        if model.adapter is not None:
            save_adapter(folder / "adapter", "ours", model.adapter, encoder, known_as)
        else:
            save_fusion(folder, list(case.adapters), model.fusion, encoder, fused, known_as)
        save_head(folder, head, model.head, encoder, labels, model.choices, known_as)
        save_file({"logits": logits(model, case)}, folder / "ours.safetensors")


def read_ours(out: Path) -> None:
    """In the peer's environment: load what `write_ours` wrote, and compare logits."""
    sys.path.insert(0, str(HERE))
    import make_golden as peer
    import torch
    from adapters.composition import Fuse
    from safetensors.torch import load_file

    worst = 0.0
    for name, spec in peer.CASES.items():
        folder = out / name
        model = peer.build_backbone(spec["backbone"])
        if spec["fusion"]:
            for adapter in spec["adapters"]:
                model.load_adapter(str(HERE / name / "adapters" / adapter), with_head=False)
            model.load_adapter_fusion(str(folder), with_head=False)
            model.active_adapters = Fuse(*spec["adapters"], name="our-fusion")
        else:
            model.load_adapter(str(folder / "adapter"), with_head=False, set_active=True)
        model.load_head(str(folder))
        model.active_head = "head"
        batch = peer.inputs(name, model.config.pad_token_id, model.config.type_vocab_size)
        with torch.no_grad():
            theirs = model.eval()(**batch, return_dict=True).logits
        ours = load_file(folder / "ours.safetensors")["logits"]
        difference = (ours - theirs).abs().max().item()
        worst = max(worst, difference)
        print(f"  {name}: {difference:.1e}")
        if difference > 1e-5:
            raise SystemExit(f"error: {name}: the peer computes other logits from our folder")
    print(f"our folders in the peer: logits differ by at most {worst:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--read-ours", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.read_ours:
        read_ours(args.read_ours)
        return
    make_environment()
    with tempfile.TemporaryDirectory() as name:
        fresh, ours = Path(name) / "fresh", Path(name) / "ours"
        subprocess.run([PYTHON, HERE / "make_golden.py", "--out", fresh], check=True)
        worst = compare(fresh, HERE)
        print(
            f"golden files made anew: numbers differ by at most {worst:.1e} from the committed ones"
        )
        environment = os.environ | {"ADAPTERFUSION_GOLDEN": str(fresh)}
        subprocess.run(
            [sys.executable, "-m", "pytest", *TESTS], cwd=ROOT, env=environment, check=True
        )
        write_ours(ours)
        command = [PYTHON, Path(__file__).resolve(), "--read-ours", ours]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {' '.join(map(str, error.cmd))} ended with {error.returncode}")
