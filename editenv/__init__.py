"""LifelongEdit: lifelong editing of language models as a Gymnasium environment.

Importing this package registers ``LifelongEdit-v0``:

    import gymnasium as gym
    import editenv

    env = gym.make("LifelongEdit-v0", split="test", edits_per_step=20, horizon=50)
"""

from gymnasium.envs.registration import register, registry

from editenv import renamed

__version__ = "0.2.0"

renamed.install()

if "LifelongEdit-v0" not in registry:
    # A string entry point keeps the spec serialisable and this import light.
    register(
        id="LifelongEdit-v0",
        entry_point="editenv.env:LifelongEditEnv",
        vector_entry_point="editenv.vector:LifelongEditVectorEnv",
    )
