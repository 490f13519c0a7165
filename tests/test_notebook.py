"""The notebook runs from top to bottom, with fewer steps than its committed outputs are from."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import nbformat
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient

from curation.base.errors import CocuError
from pipelines import notebook as pipelines_notebook
from pipelines.notebook import curate

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "walk.ipynb"


def test_the_notebook_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("WALK_SCENES", "40")
    monkeypatch.setenv("WALK_EPOCHS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "examples")}}).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 4
    pages = [output["data"]["text/html"] for cell in notebook.cells for output in cell.get("outputs", [])
             if "data:image/jpeg" in output.get("data", {}).get("text/html", "")]  # fmt: skip
    assert [page.count("data:image/jpeg") for page in pages] == [3, 1]  # of head and of show
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "'archives'" in printed


def test_its_outputs_are_committed_and_small():
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert NOTEBOOK.stat().st_size < 400_000
    assert sum(bool(cell.outputs) for cell in cells) >= 8
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert str(ROOT) not in NOTEBOOK.read_text()


# --- curation in a kernel -----------------------------------------------------------------------------------------------


IN_THE_KERNEL = """
from pipelines.curate import main
main(["--data", {data!r}, "--output", {inside!r}, "--runner", "inprocess"])
"""
BESIDE_IT = """
from pipelines.notebook import curate
archive = curate({data!r}, {beside!r}, runner="inprocess", settings={{"archive.seed": 0}})
archive
"""


def test_a_real_kernel_curates_in_itself_and_beside_itself(world, finished, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    names = {"data": str(world), "inside": str(tmp_path / "inside"), "beside": str(tmp_path / "beside")}
    sources = [IN_THE_KERNEL.format(**names), BESIDE_IT.format(**names), "archive.head(2)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for folder in ("inside", "beside"):
        for path in sorted((finished / "archives").glob("*.parquet")):
            assert pq.read_table(tmp_path / folder / "archives" / path.name).equals(pq.read_table(path))

    _, beside, shown = notebook.cells
    printed = "".join(output.get("text", "") for output in beside.outputs)
    assert "Finished in" in printed
    assert "\x1b" not in printed
    assert beside.outputs[-1].data["text/plain"].startswith("ConceptArchive(")
    assert "<table>" in beside.outputs[-1].data["text/html"]
    assert shown.outputs[-1].data["text/html"].count("data:image/jpeg") == 2


def test_a_run_that_fails_beside_a_kernel_is_an_error_with_its_line(tmp_path, capfd):
    (tmp_path / "data.yaml").write_text("name: x\nshards: '*.tar'\nencoder: {model: ViT-B-32, pretrained: openai}\n")
    with pytest.raises(CocuError, match="curation ended with exit code 1; the lines above say why"):
        curate(tmp_path / "data.yaml")
    assert "matches no file" in capfd.readouterr().out


@pytest.mark.parametrize("heard", [True, False])
def test_interrupting_the_cell_ends_the_run(heard, tmp_path, monkeypatch):
    """Jupyter interrupts the processes of a kernel all at once; other front ends only the kernel."""
    script = tmp_path / "run"
    script.write_text(
        "#!/usr/bin/env python3\nimport sys, time\nprint('begun')\nsys.stdout.flush()\n"
        f"time.sleep({0.2 if heard else 600})\n"
    )
    script.chmod(0o755)
    processes = []
    original = subprocess.Popen

    def popen(command, **options):
        processes.append(original([str(script)], **options))
        return processes[-1]

    def interrupted(*words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipelines_notebook, "HEARD", 10 if heard else 0.2)
    monkeypatch.setattr(pipelines_notebook, "print", interrupted, raising=False)
    monkeypatch.setattr(pipelines_notebook.subprocess, "Popen", popen)
    with pytest.raises(KeyboardInterrupt):
        curate("data.yaml", tmp_path / "out")
    assert processes[0].returncode == (0 if heard else -15)
