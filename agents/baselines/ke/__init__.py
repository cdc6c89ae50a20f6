"""KnowledgeEditor (De Cao et al. 2021, EMNLP; arXiv 2104.08164): a network reads what a fact was and what it is to be,
and masks the gradient accordingly.

It is trained so that the new answer becomes likely under a constraint: what the model says elsewhere moves by no more
than a margin.
"""

from agents.baselines.ke.agent import KE
from agents.baselines.ke.config import KEConfig

__all__ = ["KE", "KEConfig"]
