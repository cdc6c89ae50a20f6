"""OneEdit: what contradicts what, and that it is rolled back, in a stream and over a journal."""

import pytest

from agents.baselines.oneedit import Graph, OneEdit, slot_of
from agents.baselines.rag import FORM
from agents.editing.editor import LifelongEditor
from agents.editing.guard import Guard
from agents.editing.resolution import edit_resolved
from agents.progress import silent
from agents.view import Actor
from editenv.data import Edit


def fact(prompt, target, subject="Ada", relation=None):
    return Edit(id=f"{prompt} {target}", prompt=prompt, target=target, subject=subject, relation=relation)


HOME, HERE = "The home of Ada is", "Ada lives in"


def said(sentence):
    return FORM.replace("{}", sentence)


def test_a_slot_is_the_subject_and_the_relation_or_the_words_around_the_subject():
    assert slot_of(fact(HOME, "Rome")) == ("Ada", "The home of {} is")
    assert slot_of(fact(HOME, "Rome", relation="home")) == slot_of(fact(HERE, "Oslo", relation="home"))
    assert slot_of(fact("The home of Bo is", "Rome", "Bo")) != slot_of(fact(HOME, "Rome"))
    assert slot_of(fact("Bo?", "x", None)) == ("", "Bo?")


def test_the_graph_gives_the_prompts_that_say_something_else():
    graph = Graph()
    assert graph.resolve(("Ada", "home"), HOME, "Rome") == []
    assert graph.resolve(("Ada", "home"), HERE, " Rome") == [], "the same object, but for white space"
    assert graph.resolve(("Ada", "work"), HERE, "Oslo") == [], "another relation"
    assert graph.resolve(("Ada", "home"), "Ada's town is", "Oslo") == [HOME, HERE]
    assert graph.objects["Ada", "home"] == {"Ada's town is": "Oslo"}
    assert graph.resolve(("Ada", "home"), "Ada's town is", "Bonn") == [], "the prompt itself is made again"


@pytest.fixture
def stream(make_env, small_world):
    """An environment to which batches are given, and the agent at work in it."""
    env = make_env(dataset=None, horizon=None)
    env.reset(seed=0)

    def at_work(agent):
        agent.prepare(env, 0, silent)
        actor = Actor(env, agent)
        actor.begin()

        def edit(*edits):
            env.present(edits)
            env.step(actor.act(*actor.look()))
            return dict(env.language_model.context.entries)

        return edit

    return at_work


def test_an_edit_in_other_words_takes_the_earlier_ones_place(stream):
    edit = stream(OneEdit())
    first = edit(fact(HOME, "Rome", relation="home"), fact("Bo is", "tall", "Bo"))
    assert first == {HOME: said(f"{HOME} Rome."), "Bo is": said("Bo is tall.")}
    assert edit(fact(HERE, "Oslo", relation="home")) == {"Bo is": said("Bo is tall."), HERE: said(f"{HERE} Oslo.")}
    within = edit(fact(HOME, "Bonn", relation="home"), fact(HERE, "Lima", relation="home"))
    assert within == {"Bo is": said("Bo is tall."), HERE: said(f"{HERE} Lima.")}, "of a batch the later one holds"


def test_a_run_that_is_gone_on_with_resolves_as_if_it_had_not_been_interrupted(stream):
    agent, other = OneEdit(), OneEdit()
    edit = stream(agent)
    edit(fact(HOME, "Rome", relation="home"))
    state = agent.batch_state()
    edit(fact(HERE, "Oslo", relation="home"))
    agent.revert_batch()
    assert agent.batch_state() == {}
    again = edit(fact("Ada's town is", "Bonn", relation="home"))
    assert HOME not in again, "what was reverted rolled back is in the graph again"
    other_edit = stream(other)
    other.load_batch_state(state)
    assert other._graph.resolve(("Ada", "home"), "x", "y") == [HOME]
    assert other_edit(fact("Bo is", "tall", "Bo"))["Bo is"]


@pytest.mark.parametrize("method", ["rag", "fine-tune"])
def test_over_a_journal_what_is_contradicted_is_undone_with_any_method(model_folder, tmp_path, method):
    guard = Guard(float("inf"), float("inf"), None, None)
    settings = {"steps": 2} if method == "fine-tune" else None
    with LifelongEditor(model_folder, method, output=tmp_path / "out", settings=settings, guard=guard) as editor:
        _, undone = edit_resolved(editor, [fact(HOME, "Rome", relation="home"), fact("Bo is", "tall", "Bo")])
        assert undone == []
        result, undone = edit_resolved(editor, fact(HERE, "Oslo", relation="home"))
        assert result.applied
        assert [edit.target for edit in undone] == ["Rome"]
        assert [edit.target for edit in editor.edits] == ["tall", "Oslo"]
        assert len(editor.run.undone) == 1
        if method == "rag":
            assert list(editor.lm.context.entries) == ["Bo is", HERE]
    with LifelongEditor(model_folder, method) as editor:
        editor.edit(fact(HOME, "Rome", relation="home"))
        with pytest.raises(ValueError, match="keeps no journal"):
            edit_resolved(editor, fact(HERE, "Oslo", relation="home"))
