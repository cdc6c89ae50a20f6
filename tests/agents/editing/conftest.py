from dataclasses import asdict

import pytest

from agents.editing import corrections, unrelated
from agents.editing.editor import LifelongEditor


@pytest.fixture(autouse=True)
def brief_answers(monkeypatch):
    """The tiny model never stops by itself, and what it writes takes most of a run's time: fewer tokens show the same."""
    monkeypatch.setattr(corrections, "LONGEST_SAID", 6)
    monkeypatch.setattr(unrelated, "SHOWN", unrelated.COMPARED)


@pytest.fixture
def few_questions(monkeypatch):
    """What is asked beside the corrections, and its scores, take most of the time of a run that is tested otherwise."""
    monkeypatch.setattr(unrelated, "GENERAL", ("The capital of France is",))
    monkeypatch.setattr(
        LifelongEditor,
        "evaluate",
        lambda editor: {
            "edits": len(editor.edits),
            "rolled_back": [asdict(result) for result in editor.results if not result.applied],
        },
    )
