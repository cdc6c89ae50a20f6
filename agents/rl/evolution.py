"""Evolution strategies (Salimans et al. 2017, "OpenAI-ES") on the hypernetwork that RLEdit trains.

    python -m agents.rl.evolution --output runs/evolution           # trains on the embedded model
    python -m agents.rl.evolution --output runs/evolution --train.pairs 16 --train.noise 0.01

Noise goes into the parameters, not into the actions. In each generation pairs of policies, ``phi + s E`` and ``phi
- s E`` (antithetic), edit one common stream; their returns are replaced by their ranks, and

    sum over pairs of (rank of + minus rank of -) E / s

is the direction of the optimiser's step. Nothing is differentiated and no credit is given to single steps. Resumes
like RLEdit.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from agents.hypernetwork import train_command
from agents.hypernetwork.agent import HypernetworkAgent
from agents.hypernetwork.config import TrainConfig
from agents.hypernetwork.training import Step, Trainer
from agents.rl.episodes import check_config, play, rewards_to_go
from editenv.arguments import PositiveFloat, PositiveInt


@dataclass(frozen=True)
class EvolutionConfig(TrainConfig):
    """RLEdit's options, and the strategy's; one trajectory is one generation on one stream.

    Attributes:
        pairs: Antithetic pairs of policies in a generation.
        noise: Standard deviation of what is added to the network's parameters.
        scalar_noise: The same for the logarithms of step size and ridge.
    """

    pairs: PositiveInt = 8
    noise: PositiveFloat = 0.01
    scalar_noise: PositiveFloat = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_config(self)
        if self.credit != "trajectory":
            raise ValueError("credit must be 'trajectory': an evolution strategy sees whole returns only")


class EvolutionTrainer(Trainer):
    """Antithetic pairs on a common stream, ranks, one optimiser step."""

    title = "evolution strategy"
    config: EvolutionConfig

    @property
    def steps_per_update(self) -> int:
        return 2 * self.config.pairs * super().steps_per_update

    def learn(self) -> tuple[Sequence[Step], float]:
        config = self.config
        parameters = list(self.policy.parameters())
        scalars = {id(parameter) for parameter in self.policy.scalars()}
        deviations = [config.scalar_noise if id(p) in scalars else config.noise for p in parameters]
        steps: list[Step] = []
        returns = np.zeros((config.pairs, 2))
        with torch.no_grad():
            center = [parameter.clone() for parameter in parameters]
            for pair in range(config.pairs):
                noise = self.noise(pair)
                for side, sign in enumerate((1, -1)):
                    for parameter, middle, deviation, e in zip(parameters, center, deviations, noise, strict=True):
                        parameter.copy_(middle + sign * deviation * e)
                    episode = play(self, self.policy, again=bool(steps))
                    returns[pair, side] = rewards_to_go(episode, config.discount)[0]
                    steps += episode
            for parameter, middle in zip(parameters, center, strict=True):
                parameter.copy_(middle)
                parameter.grad = torch.zeros_like(middle)
            for pair, weight in enumerate(pair_weights(returns)):
                for parameter, deviation, e in zip(parameters, deviations, self.noise(pair), strict=True):
                    assert parameter.grad is not None
                    parameter.grad -= weight / deviation * e  # the optimiser descends
        return steps, self.ascend()

    def noise(self, pair: int) -> list[torch.Tensor]:
        """E of a pair, a tensor for each parameter; made anew when it is asked for, the same at every call."""
        seed = random.Random(f"{self.seed}/{self.trajectory}/{pair}").getrandbits(63)
        generator = torch.Generator(self.lm.device).manual_seed(seed)
        return [torch.randn(p.shape, generator=generator, device=self.lm.device) for p in self.policy.parameters()]


def pair_weights(returns: np.ndarray) -> np.ndarray:
    """What each pair's noise counts for, from ``(pairs, 2)`` returns: half the mean difference of their centred ranks.

    Ranks lie evenly in [-1/2, 1/2]; equal returns share theirs, and those of a model that broke (NaN) are the last.
    """
    from scipy.stats import rankdata

    ranks = (
        rankdata(np.nan_to_num(returns, nan=-np.inf, posinf=np.inf, neginf=-np.inf)).reshape(returns.shape) - 1
    ) / (returns.size - 1) - 0.5
    return (ranks[:, 0] - ranks[:, 1]) / (2 * len(returns))


class EvolutionAgent(HypernetworkAgent):
    """RLEdit's network, trained by an evolution strategy."""

    trainer = EvolutionTrainer

    def __init__(self, config: EvolutionConfig | None = None, train: bool = True) -> None:
        super().__init__(config or EvolutionConfig(), train=train)


@dataclass
class Args(train_command.Args):
    """Arguments of the command.

    Attributes:
        train: Training and policy.
    """

    train: EvolutionConfig = field(default_factory=EvolutionConfig)


if __name__ == "__main__":
    import tyro

    train_command.run(tyro.cli(Args, description=__doc__), EvolutionTrainer)
