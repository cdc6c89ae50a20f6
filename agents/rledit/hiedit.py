"""HiEdit (Wang et al. 2026, ACL; arXiv 2604.11214): RLEdit with a gate that chooses the modules of each batch."""

from dataclasses import dataclass, field
from pathlib import Path

from agents.hypernetwork.agent import HypernetworkAgent
from agents.hypernetwork.config import GatedPolicyConfig, TrainConfig
from agents.rledit.trainer import RLEditTrainer
from editenv.arguments import PositiveInt


@dataclass(frozen=True)
class HiEditConfig(TrainConfig):
    """RLEdit's options; the public code differs from its defaults where docs/reference/papers_and_code.md says so.

    Attributes:
        policy: The network, and the gate.
    """

    policy: GatedPolicyConfig = field(default_factory=GatedPolicyConfig)


class HiEditTrainer(RLEditTrainer):
    """RLEdit's training, in which each choice of the gate answers for the rewards of the whole trajectory, too.

    Public code subtracts from the gate's loss what editing all modules would have lost, as a constant: its gradient is
    the same without.
    """

    title = "HiEdit"


class HiEdit(HypernetworkAgent):
    """A high-level policy chooses modules for each batch, a low-level one, RLEdit's, says what is written into them.

    From the gradient of a batch to its deltas (:class:`agents.hypernetwork.gate.Gate`):

        s   = scores of the modules, from the mean features of all their tokens
        g_m = 1 for the modules with the highest scores, a share of all, else 0
        D_m = g_m * RLEdit's delta of module m

    Both are trained by RLEdit's policy gradient over whole trajectories, g_m straight-through (``dg_m/ds_m = 1``). The
    modules that are chosen from are the environment's; of one module there is nothing to choose, and with ``share=1``
    it is RLEdit to the last bit.
    Needs training edits with rephrases and locality prompts; no subject; text for P alone.

    Args:
        config: How it is trained; a policy trained before brings its own.
        policy: Folder of a policy trained before; without one, :meth:`prepare` trains.
        train: False leaves network and gate as they are initialised.
        actions_per_batch: K at edit time; the training's by default.

    Raises:
        ValueError: If both a config and a policy are given, or the policy has no gate.
    """

    trainer = HiEditTrainer

    def __init__(
        self,
        config: HiEditConfig | None = None,
        policy: str | Path | None = None,
        train: bool = True,
        actions_per_batch: PositiveInt | None = None,
    ) -> None:
        if policy is None:
            config = config or HiEditConfig()
        super().__init__(config, policy, train, actions_per_batch)
        if not isinstance(self.config.policy, GatedPolicyConfig):
            raise ValueError(f"policy: {policy} has no gate: it is for rledit; train one for hiedit")
