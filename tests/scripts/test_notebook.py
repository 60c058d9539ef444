"""The notebook, from its first cell to its last, on the tiny tier with few steps."""

import json

import jax
import pytest

from fixtures import ROOT, TRAIN_FLAGS, environment

nbclient = pytest.importorskip("nbclient", reason="pip install -e '.[test]'")
nbformat = pytest.importorskip("nbformat", reason="pip install -e '.[test]'")
BOOK = ROOT / "notebooks" / "colab.ipynb"


def printed(cell) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook's own machinery
def test_the_notebook_runs_from_its_first_cell_to_its_last(compiled, tmp_path, monkeypatch):
    for name, value in environment(compiled).items():
        monkeypatch.setenv(name, value)
    book = nbformat.read(BOOK, 4)
    cells = {cell.id: cell for cell in book.cells}
    cells["settings"].source += (f"\nRUNS = {str(tmp_path)!r}"
                                 f"\nTINY_FLAGS = {' '.join(TRAIN_FLAGS)!r} + ' --num_steps=2 --eval_every=1'")
    install, pip = cells["install"].source.rsplit("\n", 1)
    assert pip.startswith("!{sys.executable} -m pip install")
    cells["install"].source = install  # the packages are here
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(BOOK.parent)}}).execute()
    summary = json.loads((tmp_path / "tiny" / "summary.json").read_text())
    assert summary["base"]["n"] == 16 and "final" in summary
    assert f"this machine: {jax.devices()[0].device_kind}" in printed(cells["here"]) and "error" not in printed(cells["tiny"])
    page = cells["report"].outputs[-1]["data"]["text/html"]
    assert page.startswith("<div><iframe srcdoc=") and "&lt;html" in page and len(page) > 10_000
    assert "MODEL is empty" in printed(cells["published"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_opened_alone_clones_the_repository_or_says_what_to_fill_in(tmp_path):
    """In an empty folder, with an address that can be cloned, and with one that cannot."""
    for name, address in (("right", str(ROOT)), ("wrong", str(tmp_path / "none"))):
        book = nbformat.read(BOOK, 4)
        book.cells = [cell for cell in book.cells if cell.id in ("settings", "install")]
        book.cells[0].source += f"\nREPOSITORY = {address!r}"
        book.cells[1].source = book.cells[1].source.rsplit("\n", 1)[0] + "\nprint(os.getcwd())"
        (tmp_path / name).mkdir()
        nbclient.NotebookClient(book, timeout=300, allow_errors=True,
                                resources={"metadata": {"path": str(tmp_path / name)}}).execute()
        if name == "right":
            assert printed(book.cells[1]).strip() == str(tmp_path / "right" / "rlvr_jax")
        else:
            said, = (output.evalue for output in book.cells[1].outputs if output.output_type == "error")
            assert said == f"{address} cannot be cloned: put the address of the repository into REPOSITORY, in the first cell"


def test_the_notebook_is_kept_without_outputs():
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in nbformat.read(BOOK, 4).cells)
