"""The notebook examples/tour.ipynb: it runs from top to bottom, and what it says of its results is so."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
PATH = ROOT / "examples" / "tour.ipynb"
RESULTS = """
import json
ends = {name: {"return": total, **history[-1]} for name, (total, history) in results.items()}
print(json.dumps({"ends": ends, "before": before, "after": after, "reverted": ask()}))
"""


@pytest.fixture
def notebook():
    return nbformat.read(PATH, as_version=4)


def test_it_is_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 5
    assert not any(cell.outputs or cell.execution_count for cell in code)


def test_its_links_lead_somewhere(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((\S+?)\)", text)
    assert links
    assert all((PATH.parent / link).exists() for link in links)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(notebook, tmp_path):
    notebook.cells.append(nbformat.v4.new_code_cell(RESULTS))
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    last = json.loads(notebook.cells[-1].outputs[0].text)

    ends = last["ends"]
    assert ends["no edit"]["specificity"] == 100
    assert ends["no edit"]["efficacy"] < 5
    assert ends["closed form, step 6"]["efficacy"] > ends["closed form"]["efficacy"] + 20  # "corrects more"
    assert ends["closed form, step 6"]["specificity"] < 20  # "most of the other facts are lost"
    assert ends["RLEdit, trained"]["return"] > ends["RLEdit, untrained"]["return"] + 50
    assert ends["RLEdit, trained"]["efficacy"] > 2 * ends["RLEdit, untrained"]["efficacy"]  # "makes it bolder"

    assert last["before"] == ["Yahoo", "Yahoo", "Yahoo"]
    assert last["after"] == ["Automattic", "Automattic", "Yahoo"]
    assert last["reverted"] == last["before"]
