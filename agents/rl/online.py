"""Online RLEdit: RLEdit's network, rewards and streams, with an optimiser step after every reward.

    python -m agents.rl.online --output runs/online                 # trains on the embedded model

The paper considers it and rejects it (Li et al. 2025, section 3.2); the training is :mod:`agents.hypernetwork.online`.
Resumes like RLEdit.
"""

from agents.hypernetwork import train_command
from agents.hypernetwork.agent import HypernetworkAgent
from agents.hypernetwork.online import OnlineTrainer


class OnlineRLEdit(HypernetworkAgent):
    """RLEdit whose policy learns at every step of a trajectory, and not once after it."""

    trainer = OnlineTrainer


if __name__ == "__main__":
    import tyro

    train_command.run(tyro.cli(train_command.Args, description=__doc__), OnlineTrainer)
