"""Batches of unlike size: what is asked for an edit does not depend on how many others share its batch.

The gradient that is observed is that of a sum over tokens, so that an edit's part of it is the same in any company. Of
a mean, as in the public code of UltraEdit and StableEdit, the edits of a short batch would have longer gradients than
those that the running statistics come from, and would be made that much harder.
"""

import pytest
import torch

from agents.baselines.stableedit import StableEdit
from agents.baselines.ultraedit import UltraEdit
from editenv.language_model.editable_lm import Gradient

LAST = "model.layers.2.mlp.down_proj"
# Hardly any ridge: the delta makes at each token the change that is asked for, whatever the other tokens ask.
AGENTS = {"ultraedit": UltraEdit(ridge=1e-6), "stableedit": StableEdit(ridge=1e-6, warm_up_batches=2)}


def asked(agent, gradient, attempt):
    """The change of the module's outputs at a batch's tokens; with attempt 1 by the statistics as they stand."""
    return gradient.keys @ agent.act({LAST: gradient}, {"attempt": attempt})[LAST].dense()


@pytest.mark.parametrize("name", AGENTS)
def test_an_edit_is_asked_for_the_same_in_a_short_batch_as_in_a_full_one(make_env, name):
    env, agent = make_env(modules=[LAST], edits_per_step=6, horizon=6), AGENTS[name]
    agent.prepare(make_env(modules=[LAST], edits_per_step=6, split="train"), 0, lambda *_: None)
    env.reset(seed=0)
    agent.begin(env)
    for batch in range(4):
        agent.act({LAST: env.gradient_of(env.stream[6 * batch : 6 * batch + 6])[LAST]}, {"attempt": 0})
    full, short = (env.gradient_of(env.stream[24 : 24 + edits])[LAST] for edits in (6, 2))
    changes, tokens = asked(agent, full, 0), len(short.keys)
    assert tokens < len(full.keys) / 2
    torch.testing.assert_close(short.value_grads, full.value_grads[:tokens], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(asked(agent, short, 1), changes[:tokens], rtol=0.02, atol=0.02 * float(changes.std()))

    mean = Gradient(short.keys, short.value_grads * len(full.keys) / tokens)  # in units of the full batch's mean
    harder = asked(agent, mean, 1).norm() / changes[:tokens].norm()
    assert harder > 1.5
