"""Episodes in text give what the Gymnasium wrappers give."""

import numpy as np
import pytest

from editenv.env import RefusedActionError
from editenv.language_agents.choices import BadChoiceError
from editenv.language_agents.episode import GRADIENT, LAYER, TextEpisode


def table_of(observation):
    """(m, 10) the numbers of a table's rows."""
    return np.concatenate([observation["gradient"], observation["layers"]], 1)


def test_an_episode_is_that_of_the_wrappers(arguments, choices, by_gymnasium):
    episode = TextEpisode(**arguments)
    situation = episode.reset(seed=5)
    observations, rewards = by_gymnasium
    for chosen, reward, before in zip(choices, rewards, observations[:-1], strict=True):
        rows = [[numbers[column] for column in (*GRADIENT, *LAYER)] for numbers in situation.modules.values()]
        np.testing.assert_array_equal(np.array(rows, np.float32), table_of(before))
        assert not situation.done
        situation = episode.step(chosen)
        assert situation.last_reward == reward
    assert situation.done
    assert situation.edits == []
    rows = [[numbers[column] for column in (*GRADIENT, *LAYER)] for numbers in situation.modules.values()]
    np.testing.assert_array_equal(np.array(rows, np.float32), table_of(observations[-1]))
    with pytest.raises(RuntimeError, match="the episode is over"):
        episode.step({})


def test_what_is_left_out_stays(arguments):
    episode = TextEpisode(**arguments)
    episode.reset(seed=5)
    lm = episode._editing.language_model
    situation = episode.step({"layers.2.mlp.down_proj": {"step": 1.0}})
    changed = {name: not lm.weight(name).equal(lm.initial_weight(name)) for name in lm.modules}
    assert list(changed.values()) == [False, True]
    assert [numbers["weight_change"] > 0 for numbers in situation.modules.values()] == [False, True]
    episode.reset(seed=5)
    assert episode.step({}).last_reward == pytest.approx(0.0, abs=1e-5), "no editing"


@pytest.mark.parametrize(
    ("chosen", "error"),
    [({"layers.0": {"step": 1}}, BadChoiceError), ({"layers.2.mlp.down_proj": {"step": 1e39}}, RefusedActionError)],
)
def test_a_bad_choice_leaves_the_episode_as_it_was(arguments, choices, by_gymnasium, chosen, error):
    episode = TextEpisode(**arguments)
    before = episode.reset(seed=5)
    with pytest.raises(error, match="layers"):
        episode.step({"layers.1.mlp.down_proj": {"step": 1}} | chosen)
    weights = episode._editing.language_model
    assert all(weights.weight(name).equal(weights.initial_weight(name)) for name in weights.modules)
    assert episode.step(choices[0]).last_reward == by_gymnasium[1][0]
    assert before.batch == 0


def test_the_text_has_the_batch_and_the_table(arguments, choices):
    episode = TextEpisode(**arguments)
    situation = episode.reset(seed=5)
    text = situation.as_text()
    assert text.startswith("0 of 3 batches are done.\n")
    for edit in episode._editing.batch:
        assert f"* {edit.prompt} -> {edit.target}\n" in text
    for name, numbers in situation.modules.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert [float(cell) for cell in row.split("|")[2:-1]] == pytest.approx(list(numbers.values()), rel=5e-3)
    after = episode.step(choices[0])
    assert f"reward was {after.last_reward:.3f} (efficacy" in after.as_text()
