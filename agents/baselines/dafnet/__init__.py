"""DAFNet (Zhang et al. 2024, "Dynamic Auxiliary Fusion for Sequential Model Editing"): a network over whole
sequences of edits.

Where MEND looks at one token at a time, DAFNet's layers let the tokens of an edit speak to each other
(intra-editing attention), and each edit to all earlier ones (inter-editing attention). How much an edit attends to
itself decides what it counts for, and by how much everything before it is scaled down: the total delta is a weighted
mean of all edits' updates. What the abstract of the paper leaves open is as in its public code (qizhou000/DAFNet),
but for two things. There the weights carry no gradient, so that the attention behind them never learns; here they
do. And there every layer starts at random; here its branches start at zero, so that a fresh network passes
normalised gradients on, as MEND's does, and needs less training.
"""

from agents.baselines.dafnet.agent import DAFNet
from agents.baselines.dafnet.config import DAFNetConfig

__all__ = ["DAFNet", "DAFNetConfig"]
