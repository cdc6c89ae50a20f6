"""The encoder of an edit, and the masks that it conditions (De Cao et al. 2021, section 3.3)."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from agents.baselines.ke.config import KEConfig
from editenv.deltas import LowRank
from editenv.language_model.editable_lm import EditableLM, Gradient


class Encoder(nn.Module):
    """A bidirectional LSTM over the embeddings of "old >> new || prompt"; its last states, through a layer with tanh.

    Args:
        embedding_width: Of the language model's embeddings.
        config: Widths.
    """

    def __init__(self, embedding_width: int, config: KEConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(embedding_width, config.lstm_width, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * config.lstm_width, config.condition_width)

    def forward(self, texts: Sequence[torch.Tensor]) -> torch.Tensor:
        """``(n, condition_width)`` of ``n`` texts, ``(tokens, embedding_width)`` each."""
        lengths = torch.tensor([len(text) for text in texts])
        padded = pad_sequence(list(texts), batch_first=True)
        packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        condition: torch.Tensor = self.linear(torch.cat([last[0], last[1]], 1)).tanh()
        return condition


class Mask(nn.Module):
    """From what the encoder says of an edit to the parts of its delta of one module.

    Args:
        shape: ``(d_in, d_out)``.
        config: Widths.
        step_size: Of a fresh network.
    """

    def __init__(self, shape: tuple[int, int], config: KEConfig, step_size: float) -> None:
        super().__init__()
        self.shape, self.step_size = shape, step_size
        sizes = 2 * sum(shape) + 1
        self.hidden = weight_norm(nn.Linear(config.condition_width, config.hidden_width))
        self.output = weight_norm(nn.Linear(config.hidden_width, sizes))
        # A fresh mask lets the gradient through as it is, whatever the edit: then a step is one down the gradient.
        with torch.no_grad():
            self.output.parametrizations.weight.original0.zero_()
            self.output.bias.zero_()

    def forward(self, condition: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Of ``n`` edits: the mask ``alpha`` (n, d_in) and ``gamma`` (n, d_out), the offset ``beta`` (n, d_in) and
        ``delta`` (n, d_out), and the gate ``(n, 1)``. Softmaxes are taken times d_in, so that their mean is 1.
        """
        d_in, d_out = self.shape
        parts = self.output(self.hidden(condition).tanh()).split([d_in, d_out, d_in, d_out, 1], 1)
        alpha, beta = d_in * parts[0].softmax(1), d_in * parts[2].softmax(1)
        return alpha, parts[1] - 2 * self.step_size, beta, parts[3], parts[4].sigmoid()


class KENetwork(nn.Module):
    """An encoder for all modules, and a mask for each.

    Args:
        shapes: ``(d_in, d_out)`` of each edited module.
        embedding_width: Of the language model's embeddings.
        config: Widths and starting point.
    """

    gradient_units: torch.Tensor
    offset_units: torch.Tensor

    def __init__(self, shapes: Mapping[str, tuple[int, int]], embedding_width: int, config: KEConfig) -> None:
        super().__init__()
        self.shapes, self.config, self.embedding_width = dict(shapes), config, embedding_width
        self.encoder = Encoder(embedding_width, config)
        self.masks = nn.ModuleList(
            Mask(shape, config, config.step_size / len(self.shapes)) for shape in self.shapes.values()
        )
        self.register_buffer("gradient_units", torch.ones(len(self.shapes)))
        self.register_buffer("offset_units", torch.ones(len(self.shapes)))

    @torch.no_grad()
    def observe(self, gradients: Mapping[str, Gradient], lm: EditableLM) -> None:
        """Takes units from edits' gradients: a typical one then changes a typical output by its length."""
        for i, (name, gradient) in enumerate(gradients.items()):
            outputs = (gradient.keys @ lm.weight(name)).square().sum(1).mean().sqrt()
            key, grad = gradient.keys.square().sum(1).mean(), gradient.value_grads.square().sum(1).mean().sqrt()
            self.gradient_units[i] = outputs / (key * grad)
            self.offset_units[i] = lm.initial_weight(name).float().norm() / math.prod(self.shapes[name]) ** 0.5

    def forward(
        self, texts: Sequence[torch.Tensor], gradients: Mapping[str, Gradient], owner: torch.Tensor
    ) -> dict[str, LowRank]:
        """The sum of ``n`` edits' deltas, each ``gate (alpha gamma^T * G + beta delta^T)`` (eq. 4 and 5).

        G is an edit's gradient ``K^T V``: masked by the matrix of rank one it is ``diag(alpha) K^T V diag(gamma)``, so
        that a delta stays in factors.

        Args:
            texts: Embeddings of what each edit is about.
            gradients: ``keys`` (r, d_in) and ``value_grads`` (r, d_out) of the edits' r tokens.
            owner: ``(r,)`` the edit, 0 to n - 1, that each token belongs to.
        """
        condition = self.encoder(texts)
        deltas = {}
        for i, (name, gradient) in enumerate(gradients.items()):
            alpha, gamma, beta, delta, gate = self.masks[i](condition)
            masked = gate[owner] * gamma[owner] * gradient.value_grads * self.gradient_units[i]
            left = torch.cat([alpha[owner] * gradient.keys, beta])
            deltas[name] = LowRank(left.T, torch.cat([masked, gate * delta * self.offset_units[i]]))
        return deltas
