"""memit-rehearsed: one value a subject, rehearsal of earlier edits about it, and passes until all is said."""

import copy
from dataclasses import replace

import pytest
import torch
from plain import tokens

from agents.baselines.lookup import look_up
from agents.baselines.memit import MEMIT
from agents.baselines.memit_rehearsed import RehearsedMEMIT
from agents.baselines.values import LayerValueConfig, optimise_values
from editenv.data import Edit
from editenv.deltas import dense
from editenv.language_model.editable_lm import EditableLM

MIDDLE = "layers.1.mlp.down_proj"
NAME = f"model.{MIDDLE}"
VALUE = LayerValueConfig(learning_rate=0.3, steps=40, clamp=8.0, weight_decay=0.0, kl=0.0, prefixes=0)
AT_LAST = replace(VALUE, token="last")
TWO_FACTS = [  # targets of one token: what a tiny model can be made to say
    Edit("a", "The home of Ada is", "place", subject="Ada"),
    Edit("b", "people find ada in", "language", subject="ada"),
    Edit("c", "The home of Omar is", "work", subject="Omar"),
]


def silent(*_):
    pass


@pytest.fixture
def begun(make_env, tmp_path):
    """An environment without a stream of its own, and the agent prepared and begun on it."""
    (tmp_path / "text.txt").write_text("".join(f"The home of number {i} is in Rome\n" for i in range(30)))

    def begin(agent):
        agent.text = str(tmp_path / "text.txt")
        env = make_env(modules=[MIDDLE], dataset=None)
        env.reset(seed=0)
        agent.prepare(env, 0, silent)
        agent.begin(env)
        return env

    return begin


def step(env, agent, edits):
    _, info = env.present(edits)
    deltas = agent.act(env.gradients, info)
    env.step(deltas)
    return deltas


@torch.no_grad()
def says(lm, edit):
    head, tail = tokens(lm.tokenizer, edit.prompt, edit.target)
    choices = lm.model(torch.tensor([head + tail])).logits[0, len(head) - 1 : -1].argmax(-1)
    return choices.tolist() == tail


def test_a_shared_change_is_adam_on_the_sum_of_the_losses_in_the_plain_model(base, tokenizer):
    config = replace(VALUE, steps=6, weight_decay=0.5)
    lm = EditableLM(copy.deepcopy(base), tokenizer, [MIDDLE])
    layer, plain_layer = lm.layer_of(NAME), base.model.layers[1]
    lookup = look_up(lm, TWO_FACTS, "subject_last")
    changes = optimise_values(lm, layer, TWO_FACTS, lookup, config, sharing=[5, 5, 2])

    def searched(edits):
        def run(edit, change):
            head, tail = tokens(tokenizer, edit.prompt, edit.target)
            spans = tokenizer(edit.prompt, return_offsets_mapping=True)["offset_mapping"]
            end = edit.prompt.index(edit.subject) + len(edit.subject)
            at = max(i for i, (start, stop) in enumerate(spans) if start < end and stop > start)
            seen = []

            def add(_, args, out):
                seen.append(out[0, at].detach())
                return out + torch.nn.functional.one_hot(torch.tensor(at), out.shape[1])[:, None] * change

            handle = plain_layer.register_forward_hook(add)
            rows = base(torch.tensor([head + tail]), use_cache=False).logits[0, len(head) - 1 : -1]
            handle.remove()
            return torch.nn.functional.cross_entropy(rows, torch.tensor(tail)), seen[0].norm()

        change = torch.zeros(base.config.hidden_size, requires_grad=True)
        lengths = [run(edit, torch.zeros_like(change))[1] for edit in edits]
        optimizer = torch.optim.Adam([change], lr=config.learning_rate)
        for _ in range(config.steps):
            losses = [run(edit, change)[0] for edit in edits]
            losses = [
                loss + config.weight_decay * change.norm() / length**2
                for loss, length in zip(losses, lengths, strict=True)
            ]
            optimizer.zero_grad()
            sum(losses).backward()
            optimizer.step()
            with torch.no_grad():
                change.mul_((config.clamp * sum(lengths) / len(lengths) / change.norm()).clamp(max=1))
        return change.detach()

    assert torch.equal(changes[0], changes[1])
    for change, edits in ((changes[0], TWO_FACTS[:2]), (changes[2], TWO_FACTS[2:])):
        expected = searched(edits)
        assert (change - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("together", [1, 2, 64])
def test_edits_that_share_a_change_are_searched_together_however_many_are(make_lm, monkeypatch, together):
    lm = make_lm(MIDDLE)
    edits = [TWO_FACTS[0], TWO_FACTS[2], TWO_FACTS[1]]
    lookup, sharing = look_up(lm, edits, "subject_last"), [1, 2, 1]
    whole = optimise_values(lm, lm.layer_of(NAME), edits, lookup, VALUE, sharing=sharing)
    monkeypatch.setattr("agents.baselines.values.PROMPTS_TOGETHER", together)
    parts = optimise_values(lm, lm.layer_of(NAME), edits, lookup, VALUE, sharing=sharing)
    assert torch.equal(parts[0], parts[2])
    assert not torch.equal(parts[0], parts[1])
    torch.testing.assert_close(parts, whole, rtol=1e-2, atol=1e-2)


@pytest.fixture
def searches(monkeypatch):
    """Of each search: the edits, and which of them share a change."""
    made = []

    def watched(lm, module, edits, *rest, sharing, **options):
        made.append([sorted(e.id for e, other in zip(edits, sharing, strict=True) if other == n) for n in sharing])
        return optimise_values(lm, module, edits, *rest, sharing=sharing, **options)

    monkeypatch.setattr("agents.baselines.memit_rehearsed.optimise_values", watched)
    return made


def test_facts_of_one_subject_share_a_value_and_earlier_ones_are_made_again(begun, searches):
    agent = RehearsedMEMIT(VALUE, 1e-2, 30, passes=1)
    env = begun(agent)
    step(env, agent, TWO_FACTS)
    later = Edit("d", "So, people find Ada at", "place", subject="Ada")
    step(env, agent, [later])
    assert searches[0] == [["a", "b"], ["a", "b"], ["c"]], "in whatever case the subject is written"
    assert [sorted(group) for group in searches[1]] == [["a", "b", "d"]] * 3
    corrected = replace(TWO_FACTS[0], id="e", target="work")
    step(env, agent, [corrected])
    assert [sorted(group) for group in searches[2]] == [["b", "d", "e"]] * 3, "the old target is no longer true"


def test_passes_bring_what_the_ridge_keeps_an_update_short_of(begun):
    said = []
    for passes in (1, 6):
        agent = RehearsedMEMIT(AT_LAST, 1e4, 30, passes=passes)
        env = begun(agent)
        step(env, agent, TWO_FACTS)
        said.append(sum(says(env.language_model, edit) for edit in TWO_FACTS))
    assert said[0] < said[1] == 3


def test_what_is_said_already_is_not_searched_and_the_model_stays(begun, searches):
    agent = RehearsedMEMIT(AT_LAST, 1e-2, 30, passes=6)
    env = begun(agent)
    step(env, agent, TWO_FACTS)
    assert all(says(env.language_model, edit) for edit in TWO_FACTS)
    count = len(searches)
    before = env.language_model.snapshot()
    deltas = step(env, agent, TWO_FACTS)
    assert len(searches) == count
    assert dense(deltas[NAME]).abs().max() == 0
    assert torch.equal(before[NAME], env.language_model.snapshot()[NAME])


def test_a_pass_searches_only_what_is_not_said_and_holds_the_rest(begun, searches):
    agent = RehearsedMEMIT(AT_LAST, 1e-2, 30, passes=6)
    env = begun(agent)
    step(env, agent, TWO_FACTS[2:])
    assert says(env.language_model, TWO_FACTS[2])
    count = len(searches)
    step(env, agent, TWO_FACTS)
    assert searches[count] == [["a"], ["b"]]
    assert all(says(env.language_model, edit) for edit in TWO_FACTS)


def test_the_first_pass_is_memits_own_update_where_no_two_edits_share_a_subject(begun):
    edits = [TWO_FACTS[0], TWO_FACTS[2]]
    updates = []
    for agent in (MEMIT(VALUE, weight=5.0, samples=30, cache_keys=True), RehearsedMEMIT(VALUE, 5.0, 30, passes=1)):
        updates.append(dense(step(begun(agent), agent, edits)[NAME]))
    torch.testing.assert_close(updates[1], updates[0], rtol=1e-4, atol=1e-6)


def test_a_run_that_goes_on_from_its_batches_states_makes_the_same_update(begun):
    agent = RehearsedMEMIT(VALUE, 1e-2, 30)
    env = begun(agent)
    states = []
    for edit in TWO_FACTS[:2]:
        step(env, agent, [edit])
        states.append(agent.batch_state())
    weights = env.language_model.snapshot()
    other = RehearsedMEMIT(VALUE, 1e-2, 30)
    resumed = begun(other)
    resumed.language_model.restore(weights)
    for state in states:
        other.load_batch_state(state)
    new = [replace(TWO_FACTS[2], id="d", prompt="So, people find Ada in", subject="Ada")]
    again, expected = dense(step(resumed, other, new)[NAME]), dense(step(env, agent, new)[NAME])
    torch.testing.assert_close(again, expected, rtol=1e-3, atol=1e-4)


def test_a_state_says_where_the_question_of_a_chat_stands(begun):
    agent, other = RehearsedMEMIT(VALUE, 1e-2, 30, passes=1), RehearsedMEMIT(VALUE, 1e-2, 30)
    in_chat = replace(TWO_FACTS[0], prompt="Q: The home of Ada is\nA, says Ada:", question_span=(3, 21))
    step(begun(agent), agent, [in_chat, TWO_FACTS[2]])
    state = agent.batch_state()
    for expected in ([(3, 21), None], [None, None]):
        begun(other)
        other.load_batch_state(state)
        assert [edit.question_span for edit in other._earlier.values()] == expected
        state.pop("spans", None)  # as in states of earlier versions


def test_a_batch_that_was_taken_back_is_not_rehearsed(begun, searches):
    agent = RehearsedMEMIT(VALUE, 1e-2, 30, passes=1)
    env = begun(agent)
    _, info = env.present(TWO_FACTS[:1])
    agent.act(env.gradients, info)
    agent.revert_batch()
    agent.load_batch_state(agent.batch_state())
    step(env, agent, TWO_FACTS[1:2])
    assert searches[-1] == [["b"]]


def test_at_the_prompts_last_token_facts_of_a_subject_have_values_of_their_own(begun, searches):
    agent = RehearsedMEMIT(AT_LAST, 1e-2, 30, passes=1)
    env = begun(agent)
    step(env, agent, TWO_FACTS)
    step(env, agent, [Edit("d", "So, people find Ada at", "place", subject="Ada")])
    assert searches == [[["a"], ["b"], ["c"]], [["d"]]]
