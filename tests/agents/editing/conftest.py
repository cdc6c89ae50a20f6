import pytest

from agents.editing import corrections, unrelated


@pytest.fixture(autouse=True)
def brief_answers(monkeypatch):
    """The tiny model never stops by itself, and what it writes takes most of a run's time: fewer tokens show the same."""
    monkeypatch.setattr(corrections, "LONGEST_SAID", 6)
    monkeypatch.setattr(unrelated, "SHOWN", unrelated.COMPARED)
