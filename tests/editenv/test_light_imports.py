"""What a command line imports before it knows what to do: nothing that takes seconds."""

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "pyarrow", "safetensors", "pandas", "scipy", "matplotlib")


def modules_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after a statement."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return set(
        subprocess.run(
            [sys.executable, "-c", code], env=paths, check=True, capture_output=True, text=True
        ).stdout.split()
    )


@pytest.mark.parametrize(
    "statement",
    [
        "import editenv",
        "import editenv.models",
        "from editenv.models import EMBEDDED, PACKAGED, DTYPES, load_model, model_path",
        "from editenv.models.modules import PRESETS, modules_of, preset",
        "from editenv.data import Edit, load_edits",
        "from editenv.data.files import FileOptions",
    ],
)
def test_names_and_options_are_had_without_torch(statement):
    loaded = modules_after(statement)
    assert "editenv" in loaded
    assert not loaded & set(HEAVY)


def test_a_heavy_module_is_seen_where_it_is():
    """Else the test above would say nothing; this one is quick to import."""
    assert "safetensors" in modules_after("import safetensors")
