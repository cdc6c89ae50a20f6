"""RLEdit (Li et al. 2025): a hypernetwork trained by reinforcement learning over whole editing trajectories."""

from agents.hypernetwork.agent import HypernetworkAgent
from agents.rledit.trainer import RLEditTrainer


class RLEdit(HypernetworkAgent):
    """RLEdit (Li et al. 2025, sections 3.1 to 3.3): from a batch's gradient at the current weights to all deltas.

    An edit step is one forward, one backward and one least-squares solve.
    The network is trained on the return of eq. 11 and 12, whose rewards are eq. 7 to 10
    (:class:`agents.rledit.trainer.RLEditTrainer`); with ``config.preconditioner`` the covariance of the text's keys is
    taken, too.
    Needs training edits with rephrases and locality prompts; no subject; text for P alone.
    Defaults are the paper's where :class:`agents.hypernetwork.config.TrainConfig` says so.
    Arguments: :class:`agents.hypernetwork.agent.HypernetworkAgent`.
    """

    trainer = RLEditTrainer
