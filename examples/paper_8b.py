r"""RLEdit with the paper's rank and lambda_loc (Table 3) and rates (appendix B), for the paper's own models.

    python -m benchmarks.run --suite zsre-50x20 --data DATA --model meta-llama/Meta-Llama-3-8B \
        --preset llama-3-8b/zsre --device auto --dtype bfloat16 \
        --agents examples/paper_8b.py:LlamaZsRE --out runs/llama

Where training data of the suite are others (ZsRE's file has none left to learn from), the policy learns from those.
"""

from agents.hypernetwork.config import PolicyConfig, TrainConfig
from agents.rledit.agent import RLEdit
from editenv.models.modules import preset


class LlamaZsRE(RLEdit):
    """Llama-3-8B on ZsRE; a subclass with another ``row`` of `editenv models` is for another model or data set."""

    row = "llama-3-8b/zsre"

    def __init__(self) -> None:
        table = preset(self.row)
        network = PolicyConfig(rank=table.rank)
        super().__init__(TrainConfig(learning_rate=1e-5, locality=table.locality, policy=network))


class MistralCounterFact(LlamaZsRE):
    """Mistral-7B on CounterFact."""

    row = "mistral-7b/counterfact"
