"""The notebook runs from top to bottom, with fewer steps than its committed outputs are from."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "walk.ipynb"


def test_the_notebook_runs(monkeypatch, tmp_path):
    monkeypatch.setenv("WALK_SCENES", "80")
    monkeypatch.setenv("WALK_CLIP_STEPS", "20")
    monkeypatch.setenv("WALK_EPOCHS", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(NOTEBOOK, 4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(ROOT / "examples")}}).execute()
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 9
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "'archives'" in printed


def test_its_outputs_are_committed_and_small():
    cells = [cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    assert NOTEBOOK.stat().st_size < 400_000
    assert sum(bool(cell.outputs) for cell in cells) >= 8
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert str(ROOT) not in NOTEBOOK.read_text()
