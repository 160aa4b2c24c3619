"""Run the study's notebooks, and keep them clean.

    python -m adapterfusion.notebook run 05_fusion task=rte     # execute into results/<profile>
    python -m adapterfusion.notebook export                     # code cells -> build/notebooks
    python -m adapterfusion.notebook strip                      # clear outputs in notebooks/

Executed copies are canonical: timing, random ids and papermill's metadata go, so that the same run
gives the same bytes. DVC stages depend on the exported code, so that editing prose retrains nothing.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# jsonschema, which nbformat checks notebooks with, would parse a grammar of URLs at its import: more
# than half of the time a notebook's runner takes to start, for a format that no notebook uses
sys.modules.setdefault("rfc3987_syntax", None)

import nbformat  # noqa: E402
from nbformat import NotebookNode  # noqa: E402

from adapterfusion.config import load_config  # noqa: E402
from adapterfusion.paths import Paths, atomic_write, find_root  # noqa: E402
from adapterfusion.plans import absent  # noqa: E402
from adapterfusion.progress import PROGRESS, timed  # noqa: E402

# Folders under runs/ and weights/ that a notebook's stage leaves behind, empty where nothing was run.
FOLDERS = {
    "03_single_task_adapter": ("st_adapter/{task}", "st_adapter_houlsby/{task}"),
    "04_multitask": ("multitask_full", "mt_adapter", "sequential"),
    "05_fusion": ("fusion_st/{task}", "fusion_mt/{task}"),
    "08_ablations": ("controls", "low_resource"),
}


def strip(notebook: NotebookNode) -> NotebookNode:
    """Without outputs, counts and volatile metadata: the form that is committed in notebooks/."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return canonical(notebook)


def _whole_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Between two displays, what was printed in one piece and stdout first: pieces come as time has it."""
    result: list[NotebookNode] = []
    start = 0
    for output in outputs:
        streams = {o.name: o for o in result[start:]}
        if output.output_type != "stream":
            result.append(output)
            start = len(result)
        elif output.name in streams:
            streams[output.name].text += output.text
        else:
            result.append(output)
            result[start:] = sorted(result[start:], key=lambda o: o.name, reverse=True)
    return result


def canonical(notebook: NotebookNode) -> NotebookNode:
    """The same bytes for the same content: ids by position, no times, no machine's kernel details."""
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
    )
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
        if cell.cell_type == "code":
            cell.outputs = _whole_streams(cell.outputs)
        tags = cell.metadata.get("tags", [])
        cell.metadata = NotebookNode({"tags": tags} if tags else {})
    return notebook


def _write(notebook: NotebookNode, path: Path) -> None:
    with atomic_write(path) as temporary:
        nbformat.write(notebook, temporary)


def export(root: Path) -> None:
    """Each notebook's code cells as build/notebooks/<name>.py, which DVC stages depend on."""
    target = root / "build" / "notebooks"
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        with atomic_write(target / f"{path.stem}.py") as temporary:
            temporary.write_text("\n\n# %%\n".join(cells) + "\n", encoding="utf-8")


@contextmanager
def _progress_to_terminal() -> Iterator[None]:
    """Copy what a kernel writes to the progress file to this process's stderr, as it comes."""
    handle, name = tempfile.mkstemp(prefix="adapterfusion-", suffix=".progress")
    os.close(handle)
    os.environ[PROGRESS] = name
    done = threading.Event()

    def follow() -> None:
        with open(name, encoding="utf-8", errors="replace") as file:
            while True:
                last = done.is_set()
                text = file.read()
                if text:
                    sys.stderr.write(text)
                    sys.stderr.flush()
                if last:
                    return
                done.wait(0.5)

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()
        del os.environ[PROGRESS]
        Path(name).unlink(missing_ok=True)


def run(name: str, parameters: dict[str, str], root: Path) -> Path:
    """Execute notebooks/<name>.ipynb with the given identifiers; all numbers come from params.yaml.

    A task that is absent gets a copy that says so, and empty folders where its runs would lie.

    Returns:
        the executed, canonical copy: results/<profile>/notebooks/<name>[-<value>...].ipynb.

    Raises:
        papermill.PapermillExecutionError: a cell failed. The copy up to there is build/failed/.
    """
    import papermill
    from traitlets.config import Config

    config = load_config(root / "params.yaml")
    reason = absent(config, parameters["task"]) if "task" in parameters else None
    stem = "-".join([name, *parameters.values()])
    paths = Paths(config.profile, root)
    target = paths.notebooks / f"{stem}.ipynb"
    for folder in (paths.runs, paths.weights):
        for left in FOLDERS.get(name, ()):
            (folder / left.format(**parameters)).mkdir(parents=True, exist_ok=True)
    if reason:
        note = nbformat.v4.new_markdown_cell(f"`{parameters['task']}` is absent. {reason}")
        _write(canonical(nbformat.v4.new_notebook(cells=[note])), target)
        return target
    scratch = root / "build" / "failed" / f"{config.profile}-{stem}.ipynb"
    scratch.parent.mkdir(parents=True, exist_ok=True)
    # Kernels talk over sockets in a folder of their own: nobody listens in, and two runs side by side
    # in one folder do not hear each other.
    with _progress_to_terminal(), tempfile.TemporaryDirectory(prefix="fusion-") as sockets:
        papermill.execute_notebook(
            root / "notebooks" / f"{name}.ipynb",
            scratch,
            parameters,
            kernel_name="python3",
            cwd=root,
            progress_bar=False,
            config=Config({"AsyncKernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),
        )
    _write(canonical(nbformat.read(scratch, as_version=4)), target)
    scratch.unlink()
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description="Execute, export or strip the notebooks.")
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser(
        "run", help="execute one notebook into results/<profile>/notebooks"
    )
    runner.add_argument("name", help="file name without .ipynb")
    runner.add_argument(
        "parameters", nargs="*", metavar="key=value", help="identifiers, not numbers"
    )
    commands.add_parser("export", help="write the code cells to build/notebooks")
    commands.add_parser("strip", help="clear outputs in notebooks/, in place")
    arguments = parser.parse_args()
    root = find_root()
    if arguments.command == "export":
        shutil.rmtree(root / "build" / "notebooks", ignore_errors=True)
        export(root)
    elif arguments.command == "strip":
        for path in sorted((root / "notebooks").glob("*.ipynb")):
            _write(strip(nbformat.read(path, as_version=4)), path)
    else:
        from papermill import PapermillExecutionError

        try:
            parameters = dict(pair.split("=", 1) for pair in arguments.parameters)
            with timed(arguments.name):
                run(arguments.name, parameters, root)
        except PapermillExecutionError as error:
            sys.exit(f"error: {arguments.name}: {error.ename}: {error.evalue}")
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
