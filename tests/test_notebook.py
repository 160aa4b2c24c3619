"""Notebooks: the committed form, the executed form that has the same bytes each time, and the code
that stages depend on, which an edit of the prose leaves as it is.
"""

import copy
import os
import shutil
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from adapterfusion import notebook as notebook_module
from adapterfusion.notebook import canonical, export, run, strip
from adapterfusion.progress import PROGRESS

ROOT = Path(__file__).parents[1]


def executed() -> nbformat.NotebookNode:
    """A notebook as Jupyter leaves it: outputs, counts, times, ids and a machine's kernel."""
    parameters = v4.new_code_cell("task = 'cb'", metadata={"tags": ["parameters"]})
    code = v4.new_code_cell(
        "print(task)",
        execution_count=7,
        outputs=[v4.new_output("stream", name="stdout", text="cb\n")],
        metadata={"execution": {"iopub.execute_input": "2020-01-01T00:00:00Z"}, "trusted": True},
    )
    kernel = {"name": "mine", "display_name": "Mine", "language": "python"}
    return v4.new_notebook(
        cells=[v4.new_markdown_cell("# Title"), parameters, code],
        metadata={"kernelspec": kernel, "language_info": {"name": "python", "version": "3.0.1"}},
    )


@pytest.mark.parametrize("clean", [strip, canonical])
def test_cleaning_twice_is_cleaning_once(clean):
    once = clean(executed())
    assert nbformat.writes(clean(copy.deepcopy(once))) == nbformat.writes(once)


def test_strip_keeps_sources_and_tags_and_nothing_of_a_run():
    before, after = executed(), strip(executed())
    assert [cell.source for cell in after.cells] == [cell.source for cell in before.cells]
    assert after.cells[1].metadata == {"tags": ["parameters"]}
    assert after.cells[2].outputs == [] and after.cells[2].execution_count is None
    text = nbformat.writes(after)
    assert not any(word in text for word in ("2020", "Mine", "3.0.1", "trusted"))
    nbformat.validate(after)


def test_canonical_keeps_outputs_and_drops_times_ids_and_kernel():
    after = canonical(executed())
    assert after.cells[2].outputs[0].text == "cb\n" and after.cells[2].execution_count == 7
    text = nbformat.writes(after)
    assert not any(word in text for word in ("2020", "Mine", "3.0.1", "trusted"))
    assert nbformat.writes(canonical(executed())) == text
    nbformat.validate(after)


def test_canonical_does_not_depend_on_the_pieces_in_which_streams_arrived():
    pieces = [("stdout", "a\n"), ("stderr", "w\n"), ("stdout", "b\n"), ("stderr", "x\n")]
    whole = [("stdout", "a\nb\n"), ("stderr", "w\nx\n")]
    texts = []
    for streams in (pieces, whole):
        outputs = [v4.new_output("stream", name=name, text=text) for name, text in streams]
        cell = v4.new_code_cell("train()", execution_count=1, outputs=outputs)
        texts.append(nbformat.writes(canonical(v4.new_notebook(cells=[cell]))))
    assert texts[0] == texts[1]


def write(root: Path, cells: list, name: str = "sample") -> Path:
    path = root / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(v4.new_notebook(cells=cells, metadata=executed().metadata), path)
    return path


def exported(root: Path, name: str = "sample") -> bytes:
    export(root)
    return (root / "build" / "notebooks" / f"{name}.py").read_bytes()


def test_export_holds_code_cells_alone(tmp_path):
    cells = [v4.new_markdown_cell("# Prose"), v4.new_code_cell("a = 1"), v4.new_raw_cell("raw")]
    write(tmp_path, [*cells, v4.new_code_cell("b = 'é'")])
    text = exported(tmp_path).decode()
    assert text.split() == ["a", "=", "1", "#", "%%", "b", "=", "'é'"]
    compile(text, "sample.py", "exec")


def test_an_edit_of_prose_leaves_the_exported_bytes_and_one_of_code_does_not(tmp_path):
    prose, code = v4.new_markdown_cell("Once."), v4.new_code_cell("a = 1")
    write(tmp_path, [prose, code])
    before = exported(tmp_path)
    ran = v4.new_code_cell("a = 1", execution_count=3, metadata={"tags": ["x"]})
    write(tmp_path, [v4.new_markdown_cell("Twice."), v4.new_markdown_cell("More."), ran])
    assert exported(tmp_path) == before
    write(tmp_path, [prose, v4.new_code_cell("a = 2")])
    assert exported(tmp_path) != before


def command(root: Path, monkeypatch, *arguments: str) -> None:
    """`python -m adapterfusion.notebook ...` from a folder inside the project."""
    (root / "dvc.yaml").touch()
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.chdir(root / "notebooks")
    monkeypatch.setattr(sys, "argv", ["notebook", *arguments])
    notebook_module.main()


def test_export_command_drops_the_code_of_notebooks_that_are_gone(tmp_path, monkeypatch):
    write(tmp_path, [v4.new_code_cell("a = 1")])
    write(tmp_path, [v4.new_code_cell("b = 1")], "gone")
    command(tmp_path, monkeypatch, "export")
    (tmp_path / "notebooks" / "gone.ipynb").unlink()
    command(tmp_path, monkeypatch, "export")
    assert [p.name for p in (tmp_path / "build" / "notebooks").iterdir()] == ["sample.py"]


def test_strip_command_cleans_in_place_and_a_second_time_changes_nothing(tmp_path, monkeypatch):
    path = write(tmp_path, executed().cells)
    command(tmp_path, monkeypatch, "strip")
    once = path.read_bytes()
    assert nbformat.read(path, as_version=4).cells[2].outputs == []
    command(tmp_path, monkeypatch, "strip")
    assert path.read_bytes() == once


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_committed_notebooks_are_stripped(path):
    notebook = nbformat.read(path, as_version=4)
    assert nbformat.writes(strip(copy.deepcopy(notebook))) == nbformat.writes(notebook)


# ---- executed for real

CODE = """
import os, sys, time
for i in range(3):
    print("line", i, flush=True)
    time.sleep(0.3 * (i + int(os.environ["SLOWER"])) / 2)
with open(os.environ["ADAPTERFUSION_PROGRESS"], "a") as file:
    file.write("half way")
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A project with one notebook, and the smoke profile."""
    root = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "profiles" / "smoke.yaml", root / "params.yaml")
    cells = [
        v4.new_markdown_cell("# A sample"),
        v4.new_code_cell("task = 'none'", metadata={"tags": ["parameters"]}),
        v4.new_code_cell(CODE),
        v4.new_code_cell("assert task != 'broken', 'a broken task'\ntask"),
    ]
    write(root, cells)
    return root


@pytest.fixture(scope="module")
def two_runs(project) -> list[tuple[Path, bytes]]:
    """The executed copy after each of two executions, the second of them slower."""
    results = []
    for slower in ("0", "1"):
        os.environ["SLOWER"] = slower
        try:
            path = run("sample", {"task": "cb"}, project)
        finally:
            del os.environ["SLOWER"]
        results.append((path, path.read_bytes()))
    return results


def test_executed_copy_lies_with_the_profiles_results(two_runs, project):
    assert [path for path, _ in two_runs] == [
        project / "results" / "smoke" / "notebooks" / "sample-cb.ipynb"
    ] * 2
    assert not list((project / "build" / "failed").iterdir())
    assert PROGRESS not in os.environ


def test_parameters_reach_the_notebook_and_its_output_is_kept(two_runs):
    cells = nbformat.read(two_runs[0][0], as_version=4).cells
    assert cells[-1].outputs[-1].data["text/plain"] == "'cb'"
    text = "".join(output.text for output in cells[-2].outputs)
    assert text == "line 0\nline 1\nline 2\n"
    assert "half way" not in text


def test_two_executions_give_the_same_bytes(two_runs):
    assert two_runs[0][1] == two_runs[1][1]


def test_a_cell_that_fails_leaves_no_result_but_the_copy_to_look_at(project, capsys):
    os.environ["SLOWER"] = "0"
    try:
        with pytest.raises(Exception, match="a broken task"):
            run("sample", {"task": "broken"}, project)
    finally:
        del os.environ["SLOWER"]
    assert not (project / "results" / "smoke" / "notebooks" / "sample-broken.ipynb").exists()
    assert (project / "build" / "failed" / "smoke-sample-broken.ipynb").is_file()
    assert "half way" in capsys.readouterr().err
