"""LifelongEdit-v1: the Gymnasium face of lifelong model editing."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, overload

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from editenv import rendering, rewards
from editenv.arguments import NonNegativeInt, PositiveInt, check, checked_arguments
from editenv.contexts import CONTEXT, Context
from editenv.data import Edit, load_edits
from editenv.data.files import EditFile, FileOptions
from editenv.deltas import Delta, LowRank, real_matrix, squared_norm
from editenv.evaluation import metrics
from editenv.evaluation.batch import PROMPT, EvaluationBatch, encode_evaluation
from editenv.language_model.editable_lm import EditableLM, Gradient, ObservedTokens
from editenv.language_model.prompts import Prompts, answer_ids, asked, longest_answer
from editenv.language_model.subjects import check_subjects_have_gradient, end_of_subject, subject_tokens
from editenv.memories import Change, Memory, deltas_of, merged
from editenv.models import load_model
from editenv.models.modules import default_modules
from editenv.renamed import renamed_keywords
from editenv.rewards import RewardConfig

Observation = dict[str, dict[str, np.ndarray]]
Action = Mapping[str, "np.ndarray | Change"]


class Stream(Sequence[Edit]):
    """Edits in an order; each is made when it is asked for."""

    def __init__(self, edits: Sequence[Edit], order: np.ndarray) -> None:
        self._edits, self._order = edits, order

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, index: int) -> Edit: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Edit]: ...
    def __getitem__(self, index: int | slice) -> Edit | Sequence[Edit]:
        if isinstance(index, slice):
            return Stream(self._edits, self._order[index])
        return self._edits[int(self._order[index])]


@dataclass(frozen=True, slots=True)
class _Batch:
    """The batch at hand, encoded once for everything that is asked about it.

    Attributes:
        edits: Its edits.
        evaluation: What metrics are taken on.
        training_targets: What is taught and protected: the same, with an end-of-sequence token after each answer if
            those are trained.
        prompts: The edits' own prompts of the training targets, whose gradient is observed.
        reward: What the reward is taken on: the training targets' rephrases and locality prompts.
        subjects: ``(n,)`` the token of each of ``prompts`` at which its subject ends, where that is what is observed.
    """

    edits: list[Edit]
    evaluation: EvaluationBatch
    training_targets: EvaluationBatch
    prompts: Prompts
    reward: rewards.RewardBatch
    subjects: torch.Tensor | None = None


class RefusedActionError(ValueError):
    """An action that is not finite, or whose squares are not; the model is as it was."""


class LifelongEditEnv(gym.Env[Observation, Action]):
    """A language model that is edited batch after batch; see docs/reference/environment.md.

    Args:
        model: ``"atlas"`` (embedded), ``"smollm2-135m"`` (fetched), a Hugging Face folder, a GGUF file, or a hub id.
        dataset: ``"atlas"`` (embedded), or a file, folder or hub id as :func:`editenv.data.load_edits` takes it.
            None for an environment without a stream, to which batches are given by :meth:`present`.
        split: ``"train"``, ``"validation"`` or ``"test"``; ``"all"`` of a single file.
        edits_per_step: n, edits in one batch.
        actions_per_batch: K, how often a batch is presented, each time with the gradient at the current weights.
        horizon: Batches after which the episode is truncated; None goes on to the end of the stream.
        modules: Edited modules, as endings of dotted names; None takes the model's default.
        locality: The reward's lambda_loc.
        memory_decay: Its mu.
        memory_batches: Its k.
        regularization: Its eta.
        reward: ``"loss"``, eq. 10 in nats, which has no lower bound; or ``"improvement"``, the same as a share of what
            an unedited model loses on this stream: 1 for no loss, 0 for no editing. Where it falls below -1 the model
            is broken: the episode is terminated, with -1 for that step and for each that was left.
            ``gym.make("LifelongEdit-v1")`` has ``"improvement"``, ``LifelongEdit-v0`` ``"loss"``.
        reference: What its locality loss compares with: :class:`editenv.rewards.RewardConfig`.
        redraw: Draw new targets and phrasings at each reset (atlas' training split only).
        device: A torch device.
        dtype: The weights' type: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        render_mode: ``"ansi"``, ``"human"`` or ``"rgb_array"``.
        train_eos: Teach the end-of-sequence token after each target, and protect it after each locality answer,
            so that the model says an answer and stops. The gradient and the reward are then over one token more for
            each; metrics are not.
        observed_tokens: Which tokens the observation has: ``"answers"``, those that predict an answer token, as the
            public code of MALMEN and RLEdit keeps them; ``"all"`` tokens of prompt and target that have a gradient; or
            one token of each edit, the last of its ``"subject"`` in its own prompt, where MEMIT looks a fact up.
            Where the last layer alone is edited, or its MLP, the first two are the same, and the third is refused.
        dataset_options: For a file: :class:`editenv.data.files.FileOptions` as a dictionary.
        renamed: ``end_of_answer``, which is what ``train_eos`` was called; it works for one more version.

    Attributes:
        rewards_improvement: Whether :meth:`step` returns the improvement, and not eq. 10.

    Raises:
        ValueError: If an argument is out of range, naming it, or a record of the data set cannot be used.

    Examples:
        >>> import gymnasium as gym, editenv
        >>> env = gym.make("LifelongEdit-v1", split="validation", edits_per_step=4, horizon=2)
        >>> observation, info = env.reset(seed=0)
        >>> observation["model.layers.3.mlp.down_proj"]["value_grads"].shape[1]
        256
    """

    metadata = {"render_modes": ["ansi", "human", "rgb_array"], "render_fps": 4}  # noqa: RUF012 - Gymnasium declares it so

    @checked_arguments
    def __init__(
        self,
        model: str = "atlas",
        dataset: str | None = "atlas",
        split: str = "train",
        edits_per_step: PositiveInt = 20,
        actions_per_batch: PositiveInt = 1,
        horizon: PositiveInt | None = None,
        modules: Sequence[str] | None = None,
        locality: float = 0.6,
        memory_decay: float = 0.95,
        memory_batches: int = 10,
        regularization: float = 1e-4,
        redraw: bool = False,
        device: str | torch.device = "cpu",
        dtype: str = "float32",
        render_mode: Literal["ansi", "human", "rgb_array"] | None = None,
        dataset_options: Mapping[str, Any] | None = None,
        reference: Literal["initial", "previous"] = "initial",
        train_eos: bool = False,
        observed_tokens: ObservedTokens = "answers",
        reward: Literal["loss", "improvement"] = "loss",
        **renamed: Any,
    ) -> None:
        if renamed:
            train_eos = renamed_keywords("LifelongEditEnv", renamed).get("train_eos", train_eos)
        device = str(device)
        self.render_mode = render_mode
        self.edits_per_step = edits_per_step
        self.actions_per_batch = actions_per_batch
        self.horizon = horizon
        self.reward_config = RewardConfig(locality, memory_decay, memory_batches, regularization, reference)
        self.rewards_improvement = reward == "improvement"
        self.model_arguments: dict[str, Any] = {
            "model": model,
            "dataset": dataset,
            "modules": modules,
            "device": device,
            "dtype": dtype,
        }
        if dataset_options is not None:
            self.model_arguments["dataset_options"] = dict(dataset_options)
        if train_eos:
            self.model_arguments["train_eos"] = True
        if observed_tokens != "answers":
            self.model_arguments["observed_tokens"] = observed_tokens
        self.train_eos, self.observed_tokens = train_eos, observed_tokens
        self.dataset, self.split, self._redraw = dataset, split, redraw
        self._edits: Sequence[Edit] = ()
        if dataset is not None:
            self._edits = load_edits(dataset, split, 0 if redraw else None, dataset_options)

        base, tokenizer = load_model(model, device, dtype)
        self._check_edits(base, tokenizer, FileOptions.of(dataset_options))
        self.language_model = EditableLM(base, tokenizer, default_modules(base, model) if modules is None else modules)
        if train_eos:
            _ = self.language_model.eos_token  # refused here if there is none
        if observed_tokens == "subject":
            check_subjects_have_gradient(self.language_model)
            for edit in self._edits:  # refused here, not in the middle of a stream
                end_of_subject(edit, "observe other tokens (observed_tokens)")
        self.max_tokens = edits_per_step * self._longest_observation()
        self.observation_space: spaces.Space[Any] = self._observation_space()
        self.stream: Sequence[Edit] = Stream((), np.zeros(0, dtype=int))
        self._after_horizon = self.stream
        self._batch: _Batch | None = None
        self.batches_done = 0
        self.attempt = 0
        self._began, self._over = False, True
        self.reward = rewards.Reward(self.language_model, self.reward_config)
        self.history = rendering.History(batches=None)
        self._gradients = self._no_gradients()
        self._view: rendering.LiveView | None = None

    def _check_edits(self, base: Any, tokenizer: Any, options: FileOptions) -> None:
        """Leaves edits out, or refuses them, that are longer than the model's context; there must be a batch left."""
        if isinstance(self._edits, EditFile):
            context = getattr(base.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
            self._edits = self._edits.check_lengths(tokenizer, context, options)
        if self.dataset is not None and len(self._edits) < self.edits_per_step:
            raise ValueError(
                f"edits_per_step is {self.edits_per_step}, but {self.dataset}/{self.split} has {len(self._edits)} edits"
            )

    def _observation_space(self) -> spaces.Dict:
        """For each edited module the two factors, padded to ``max_tokens``, and which rows are tokens."""
        shapes = {name: self.language_model.shape(name) for name in self.language_model.modules}
        parts: dict[str, dict[str, spaces.Space[Any]]] = {
            name: {
                "keys": spaces.Box(-np.inf, np.inf, (self.max_tokens, d_in), np.float32),
                "value_grads": spaces.Box(-np.inf, np.inf, (self.max_tokens, d_out), np.float32),
                "token_mask": spaces.Box(0.0, 1.0, (self.max_tokens,), np.float32),
            }
            for name, (d_in, d_out) in shapes.items()
        }
        return spaces.Dict({name: spaces.Dict(part) for name, part in parts.items()})

    # -- Gymnasium ------------------------------------------------------------------------------------------------

    @cached_property
    def action_space(self) -> spaces.Space[Any]:  # type: ignore[override]
        """For every edited module a box of its weight's shape, made when it is first asked for: a box keeps its
        bounds for every entry, 7 GB for the paper's modules of an 8B model, and editing does without it.
        ``gym.make`` asks for it at once, unless told ``disable_env_checker=True``.

        Wide enough for any sane edit, and far from overflow: no entry moves by more than the largest of theta_0's
            weights.
        """
        lm = self.language_model
        return spaces.Dict(
            {
                name: spaces.Box(-bound, bound, lm.shape(name), np.float32)
                for name in lm.modules
                for bound in [float(lm.initial_weight(name).abs().max())]
            }
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Restores theta_0 bit for bit and starts a new pass through the stream, in an order drawn from the seed.

        Args:
            seed: Seeds the stream's order (and the redrawn targets).
            options: ``{"shuffle": False}`` keeps the data set's own order. ``{"keep_cache": True}`` keeps what
                the frozen layers made of prompts in earlier episodes: the same stream again costs a fraction; last
                bits may differ.
        """
        self._draw_stream(seed, {} if options is None else options)
        return self._open_stream()

    def _draw_stream(self, seed: int | None, options: Mapping[str, Any]) -> None:
        """The first half of :meth:`reset`: the order of the edits, and theta_0."""
        check("reset: options", Mapping[str, Any], options)
        super().reset(seed=seed)
        if "keep_encodings" in options:
            old = renamed_keywords("reset(options=...)", {"keep_encodings": options["keep_encodings"]})
            options = {name: value for name, value in options.items() if name != "keep_encodings"} | old
        unknown = set(options) - {"shuffle", "keep_cache"}
        if unknown:
            raise ValueError(f"reset: unknown options {sorted(unknown)}; known are 'shuffle' and 'keep_cache'")
        for name, value in options.items():
            check(f"reset: {name}", bool, value)
        if self._redraw:
            self._edits = load_edits(str(self.dataset), self.split, int(self.np_random.integers(1, 2**31)))
        shuffle = options.get("shuffle", True)
        order = self.np_random.permutation(len(self._edits)) if shuffle else np.arange(len(self._edits))
        length = len(self._edits) // self.edits_per_step * self.edits_per_step
        if self.horizon is not None:
            length = min(length, self.horizon * self.edits_per_step)
        self.stream = Stream(self._edits, order[:length])
        # The batch that a horizon keeps from being edited is observed all the same: the state that it cut off at.
        self._after_horizon = Stream(self._edits, order[length : length + self.edits_per_step])
        self.language_model.restore()
        if not options.get("keep_cache", False):
            self.language_model.clear_cache()
        self.batches_done, self.attempt, self._began, self._over, self._batch = 0, 0, True, length == 0, None
        self.reward = rewards.Reward(self.language_model, self.reward_config)
        self.history = rendering.History(batches=length // self.edits_per_step or None)
        if self.rewards_improvement:
            self.history.reward = "1 nothing lost, 0 unedited"
            self.history.reward_limits = (rewards.LOWEST_IMPROVEMENT, 1.0)
        self._gradients = self._no_gradients()

    def _no_gradients(self) -> dict[str, Gradient]:
        """What is observed where there is no batch: no tokens."""
        lm = self.language_model
        return {
            name: Gradient(*(torch.zeros(0, size, device=lm.device) for size in lm.shape(name))) for name in lm.modules
        }

    def _open_stream(self) -> tuple[Observation, dict[str, Any]]:
        """The second half: the first batch."""
        if not self._over:
            self._open_batch(self.stream[: self.edits_per_step])
            self._gradients = self.fine_tuning_gradient()
        info = self._position()
        if self.render_mode == "human":
            self.render()
        return self.padded(self._gradients), info

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Adds a delta to each edited module's weight, or puts a side memory beside it, or text into the context.

        Args:
            action: For every edited module a ``(d_in, d_out)`` array, tensor or :class:`editenv.deltas.LowRank`; or a
                :class:`editenv.memories.Memory`, which takes the place of the module's memory as a whole, or changes
                and adds the entries of its ``rows``. Beside these it may have a :class:`editenv.contexts.Context` under
                ``"context"``. The action space has deltas alone.

        Returns:
            The next observation (of the same batch while ``actions_per_batch`` lasts), the reward, whether the stream
            has ended (or the model is broken, if the reward is the improvement), whether the horizon has, and ``info``.

        Raises:
            ValueError: For a missing or unknown module or a wrong shape; the model is as it was.
            RefusedActionError: For NaN or infinity; likewise.
            RuntimeError: If the episode is over.
        """
        if self._over:
            raise RuntimeError("step: the episode is over (or never began); call reset() first")
        return self._move_on(*self._edit(self.checked(action)))

    def _edit(self, changes: Mapping[str, Change]) -> tuple[rewards.RewardTerms, dict[str, float | None]]:
        """The first half of :meth:`step`: the model is changed and judged."""
        lm, batch = self.language_model, self._open
        lm.apply(changes)
        with torch.no_grad():
            logits = lm.logits(batch.evaluation.prompts)
        # One forward serves metrics and reward, unless the reward has tokens of its own.
        reward_logits = logits[batch.reward.tokens] if batch.training_targets is batch.evaluation else None
        terms = self.reward.step(batch.reward, deltas_of(changes), reward_logits)
        scores = metrics.teacher_forced(lm, batch.evaluation, choices=logits.argmax(-1)).percentages()
        for_heat_map = batch.evaluation if self.render_mode == "rgb_array" else None
        self.history.add(self.batches_done, self.attempt, for_heat_map, terms, scores, self._reward_of(terms))
        return terms, scores

    def _reward_of(self, terms: rewards.RewardTerms) -> float:
        """In the environment's unit, of the batch at hand."""
        return self.reward.improvement(self._open.reward, terms) if self.rewards_improvement else terms.reward

    def _move_on(
        self, terms: rewards.RewardTerms, scores: Mapping[str, float | None]
    ) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """The second half: the next batch is opened."""
        judged = {"reward_terms": terms.as_dict()} | dict(scores)
        reward = self._reward_of(terms)
        if self.rewards_improvement:
            judged["broken"] = not reward >= rewards.LOWEST_IMPROVEMENT  # also where it is not a number
            if judged["broken"]:
                return self._end_broken(judged)
        self._advance()
        terminated = (
            (self.batches_done + 1) * self.edits_per_step > len(self._edits) if len(self._edits) else self._over
        )
        truncated = not terminated and self.batches_done == self.horizon
        if truncated:
            self._gradients = self.gradient_of(self._after_horizon)
        if self.render_mode == "human":
            self.render()
        return self.padded(self._gradients), reward, terminated, truncated, self._position() | judged

    def _end_broken(self, judged: dict[str, Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Terminates the episode. What is left counts as the worst there is, so that breaking a model never pays."""
        batches = max(1, len(self.stream) // self.edits_per_step - self.batches_done)
        penalty = rewards.LOWEST_IMPROVEMENT * (batches * self.actions_per_batch - self.attempt)
        self._over, self._batch = True, None
        self._gradients = self._no_gradients()
        if self.render_mode == "human":
            self.render()
        return self.padded(self._gradients), penalty, True, False, self._position() | judged

    def render(self) -> Any:
        """The episode so far: a table (``ansi``), a live table (``human``), or as ``rgb_array`` a picture of
        ``(540, 960, 3)``: which edits are kept, rewards and scores.

        Raises:
            RuntimeError: Before the first :meth:`reset`.
        """
        if self.render_mode is None:
            gym.logger.warn("render() was called, but the environment was made without a render_mode")
            return None
        if not self._began:
            raise RuntimeError("render: the episode never began; call reset() first")
        if self.render_mode == "ansi":
            return rendering.as_text(self.history)
        if self.render_mode == "rgb_array":
            self.history.look_back(self.language_model)
            return rendering.picture(self.history)
        if self._view is None:
            self._view = rendering.LiveView()
        self._view.update(self.history)
        return None

    def close(self) -> None:
        if self._view is not None:
            self._view.close()
            self._view = None

    # -- what agents and benchmarks may look at --------------------------------------------------------------------

    @property
    def batch(self) -> Sequence[Edit]:
        """The edits that the next action is for; none before the first :meth:`reset` and after the stream's end."""
        return [] if self._batch is None else self._batch.edits

    @property
    def evaluation_batch(self) -> EvaluationBatch:
        """The batch at hand as metrics see it.

        Raises:
            RuntimeError: If there is no batch: before the first :meth:`reset`, and after the stream's end.
        """
        return self._open.evaluation

    @property
    def training_targets(self) -> EvaluationBatch:
        """The batch at hand as the gradient and the reward see it, with end-of-sequence tokens if those are trained.

        Raises:
            RuntimeError: Likewise.
        """
        return self._open.training_targets

    def present(self, edits: Sequence[Edit]) -> tuple[Observation, dict[str, Any]]:
        """Shows a batch that is not of the stream: for editing what comes in, one batch after another.

        What is computed depends on the batch and on the weights alone, to the last bit, not on earlier batches.

        Args:
            edits: One or more.

        Returns:
            The observation and ``info``, as from :meth:`reset`. After ``actions_per_batch`` actions the episode is
            over until the next batch is presented.

        Raises:
            ValueError: If there are no edits, or other things than edits, or if the environment has a stream of its own.
            RuntimeError: Before the first :meth:`reset`.
        """
        check("present: edits", Sequence[Edit], edits)
        if not edits:
            raise ValueError("present: a batch has at least one edit")
        if len(self._edits):
            raise ValueError("present: this environment has a stream of its own; make one with dataset=None")
        if not self._began:
            raise RuntimeError("present: call reset() first")
        self._subjects_of(edits)  # refused before anything is changed
        self.language_model.clear_cache()
        self.reward.memory = []
        self.attempt, self._over = 0, False
        self._open_batch(edits)
        self._gradients = self.fine_tuning_gradient()
        return self.padded(self._gradients), self._position()

    @checked_arguments
    def continue_after(self, batches: NonNegativeInt) -> None:
        """Counts so many batches as done: for a run that goes on after an interruption, in an environment without a
        stream, once its weights are back.

        Raises:
            ValueError: If the environment has a stream of its own.
        """
        if len(self._edits):
            raise ValueError("continue_after: this environment has a stream of its own; make one with dataset=None")
        self.batches_done = batches

    @property
    def longest_stream(self) -> int:
        """How many edits the data set's split has; a horizon may end a stream before."""
        return len(self._edits)

    @property
    def gradients(self) -> dict[str, Gradient]:
        """The observation as agents get it: tensors on the model's device, without padding."""
        return self._gradients

    def padded(self, gradients: Mapping[str, Gradient]) -> Observation:
        """Gradients as :attr:`observation_space` has them: numpy, padded to ``max_tokens``."""
        observation: Observation = {}
        for name, gradient in gradients.items():
            tokens = len(gradient.keys)
            rows = max(tokens, self.max_tokens)
            part = {
                "keys": np.zeros((rows, gradient.keys.shape[1]), np.float32),
                "value_grads": np.zeros((rows, gradient.value_grads.shape[1]), np.float32),
                "token_mask": np.zeros(rows, np.float32),
            }
            part["keys"][:tokens] = gradient.keys.float().cpu().numpy()
            part["value_grads"][:tokens] = gradient.value_grads.float().cpu().numpy()
            part["token_mask"][:tokens] = 1.0
            observation[name] = part
        return observation

    @property
    def edits_done(self) -> Sequence[Edit]:
        """Every edit that the stream has moved past."""
        return self.stream[: self.batches_done * self.edits_per_step]

    def fine_tuning_gradient(self) -> dict[str, Gradient]:
        """The gradient of the sum over the batch's answer tokens of -log p at the weights as they stand; what is
        observed.

        Without tokens once the stream is over.
        """
        if self._over:
            return {name: Gradient(g.keys[:0], g.value_grads[:0]) for name, g in self._gradients.items()}
        return self._gradient_at(self._open.prompts, self._open.subjects)

    def gradient_of(self, edits: Sequence[Edit]) -> dict[str, Gradient]:
        """What would be observed of these edits, were they the batch at hand; nothing else is asked about them."""
        prompts, targets = [edit.prompt for edit in edits], [edit.target for edit in edits]
        encoded = self.language_model.encode(prompts, targets, append_eos=self.train_eos)
        return self._gradient_at(encoded, self._subjects_of(edits))

    def _subjects_of(self, edits: Sequence[Edit]) -> torch.Tensor | None:
        """``(n,)`` where each prompt's subject ends, if that is what is observed."""
        return subject_tokens(self.language_model, edits) if self.observed_tokens == "subject" else None

    def _gradient_at(self, prompts: Prompts, subjects: torch.Tensor | None) -> dict[str, Gradient]:
        _, gradients = self.language_model.gradients(
            prompts,
            lambda logits: torch.nn.functional.cross_entropy(logits, prompts.labels, reduction="sum"),
            self.observed_tokens,
            subjects=subjects,
        )
        return gradients

    def judge(self, deltas: Mapping[str, Delta]) -> rewards.RewardTerms:
        """The reward terms of the batch at hand at the weights as they stand, as if ``deltas`` had led there."""
        return self.reward.step(self._open.reward, deltas)

    # -- the differentiable core, for training ----------------------------------------------------------------------

    def transition(
        self, deltas: Mapping[str, Delta], lags: Sequence[int] | None = None
    ) -> tuple[rewards.RewardTerms, dict[str, Gradient]]:
        """:meth:`step` without its shell: no checks, metrics or padding, but the reward's gradient.

        Args:
            deltas: For every edited module.
            lags: Which past batches the memory term looks back at; all of the last k by default.

        Returns:
            The reward terms and the gradient of the loss (minus the reward) with respect to the edited weights. The
            next observation is in :attr:`gradients`.
        """
        self.language_model.apply(deltas)
        terms, gradient = self.reward.step_with_gradient(self._open.reward, deltas, lags)
        self._advance()
        return terms, gradient

    @property
    def unedited_loss(self) -> float:
        """Theta_0's loss on the batch at hand and those looked back at: what an improvement is measured in, in nats.

        Raises:
            ValueError: If the reward is not the improvement.
            RuntimeError: If there is no batch.
        """
        return self.reward.unedited_loss(self._open.reward)

    @property
    def batches_in_memory(self) -> int:
        """How many past batches the memory term of the next reward can look back at."""
        return len(self.reward.memory)

    def undo_all_edits(self) -> None:
        """Puts theta_0 back in the middle of a stream: no batch is looked back at, and the observation is taken anew."""
        self.language_model.restore()
        self.reward.memory = []
        if self._batch is not None:
            self.reward.open(self._batch.reward)
        self.refresh()

    def refresh(self) -> None:
        """Takes the observation anew after the weights were changed from outside."""
        self._gradients = self.fine_tuning_gradient()

    # -- inside ---------------------------------------------------------------------------------------------------

    def _longest_observation(self) -> int:
        """How many tokens at most are observed of one edit."""
        if not self._edits:
            return 0
        if self.observed_tokens == "subject":
            return 1
        tokenizer = self.language_model.tokenizer
        if self._redraw:
            from editenv.data.atlas import possible_prompts, possible_targets

            prompts = possible_prompts(self.split)
            longest = max(map(len, answer_ids(tokenizer, sorted(possible_targets()))))  # all after a space
        else:
            pairs = {(edit.prompt, edit.target) for edit in self._edits}
            prompts = {prompt for prompt, _ in pairs}
            longest = longest_answer(tokenizer, pairs)
        longest += self.train_eos
        if self.observed_tokens == "all":
            # The last token of a target is predicted, never read.
            longest += max(map(len, tokenizer(sorted(map(asked, prompts)))["input_ids"])) - 1
        return longest

    def _open_batch(self, edits: Sequence[Edit]) -> None:
        lm, edits = self.language_model, list(edits)
        subjects = self._subjects_of(edits)
        evaluation = targets = encode_evaluation(lm, edits, keep_log_probs=not self.train_eos)
        if self.train_eos:
            targets = encode_evaluation(lm, edits, keep_log_probs=True, append_eos=True)
        prompts = targets.prompts.select(targets.kind == PROMPT)
        reward = rewards.prepare(lm, targets, initial_loss=self.rewards_improvement)
        self._batch = _Batch(edits, evaluation, targets, prompts, reward, subjects)
        self.reward.open(self._batch.reward)

    @property
    def _open(self) -> _Batch:
        if self._batch is None:
            raise RuntimeError("there is no batch at hand: the stream is over, or never began; call reset() first")
        return self._batch

    def _upcoming(self) -> Sequence[Edit]:
        """The edits that :meth:`_advance` would open; none if it would not."""
        start = (self.batches_done + 1) * self.edits_per_step
        return self.stream[start : start + self.edits_per_step] if self.attempt + 1 == self.actions_per_batch else ()

    def _advance(self) -> None:
        """After an action: the next attempt, the next batch, or the end."""
        self.attempt += 1
        if self.attempt == self.actions_per_batch:
            self.attempt = 0
            self.batches_done += 1
            self.reward.add_to_memory(self._open.reward)
            start = self.batches_done * self.edits_per_step
            self._over = start >= len(self.stream)
            if self._over:
                self._batch = None
            else:
                self._open_batch(self.stream[start : start + self.edits_per_step])
        self._gradients = self.fine_tuning_gradient()

    def _position(self) -> dict[str, Any]:
        """Where the stream stands: what the returned observation is about."""
        return {"batch": self.batches_done, "attempt": self.attempt, "edits": self.batches_done * self.edits_per_step}

    def checked(self, action: Action) -> dict[str, Change]:
        """The action as deltas, memories and context on the model's device; nothing is changed if anything about it is wrong."""
        names = self.language_model.modules.keys()
        if not isinstance(action, Mapping):
            raise ValueError(f"action must map each edited module to a delta, not be a {type(action).__name__}")
        for name in action:
            if name not in names and name != CONTEXT:
                raise ValueError(f"action: unknown module {name!r}; the edited modules are {', '.join(names)}")
        changes: dict[str, Change] = {}
        for name in names:
            if name not in action:
                raise ValueError(f"action: no delta for module {name!r}; give zeros to leave it as it is")
            given = action[name]
            changes[name] = self._memory(name, given) if isinstance(given, Memory) else self._delta(name, given)
        if CONTEXT in action:
            if not isinstance(entries := action[CONTEXT], Context):
                raise ValueError(
                    f"action: {CONTEXT!r} must be an editenv.contexts.Context, not a {type(entries).__name__}"
                )
            try:
                self.language_model.context_after(entries, searched=True)
            except ValueError as error:
                raise ValueError(f"action: {error}") from None
            changes[CONTEXT] = entries
        return changes

    def _memory(self, name: str, given: Memory) -> Memory:
        """A module's memory, in float32 on the model's device; raises as :meth:`_delta` does."""
        expected = self.language_model.shape(name)
        if given.shape != expected:
            raise ValueError(
                f"action: module {name!r} expects a memory for {expected}, was given one for {given.shape}"
            )
        for part, tensor in given.parts().items():
            if not tensor.isfinite().all():
                raise RefusedActionError(
                    f"action: module {name!r} was given a memory with NaN or infinity in its {part}"
                )
        memory = Memory(given.gate, **{part: tensor.detach() for part, tensor in given.parts().items()})
        memory = memory.to(self.language_model.device, torch.float32)
        try:
            merged(self.language_model.memories.get(name), memory)
        except ValueError as error:
            raise ValueError(f"action: module {name!r}: {error}") from None
        return memory

    def _delta(self, name: str, given: Any) -> Delta:
        """A module's share of an action, in float32 on the model's device.

        Raises:
            ValueError: If it is no delta of the module's shape.
            RefusedActionError: If it is not finite.
        """
        expected, device = self.language_model.shape(name), self.language_model.device
        delta: Delta
        if isinstance(given, LowRank):
            left, right = given.left, given.right
            delta = LowRank(
                real_matrix(left, f"action: module {name!r}, left factor").to(device),
                real_matrix(right, f"action: module {name!r}, right factor").to(device),
            )
            if delta.left.shape[1] != delta.right.shape[0]:
                shapes = f"{tuple(left.shape)} and {tuple(right.shape)}"
                raise ValueError(f"action: module {name!r} was given factors of shapes {shapes}, which do not fit")
        else:
            delta = real_matrix(given, f"action: module {name!r}", expected).to(device)
        if tuple(delta.shape) != expected:
            raise ValueError(f"action: module {name!r} expects shape {expected}, was given {tuple(delta.shape)}")
        if not squared_norm(delta).isfinite():  # which the regularization takes; of a product as of its factors
            raise RefusedActionError(
                f"action: module {name!r} expects shape {expected} of finite numbers, was given NaN or infinity (or "
                "numbers whose squares are)"
            )
        return delta


def lifelong_edit(env: gym.Env[Any, Any]) -> LifelongEditEnv:
    """The environment inside all wrappers.

    Raises:
        TypeError: If it is another.
    """
    inner = env.unwrapped
    if not isinstance(inner, LifelongEditEnv):
        raise TypeError(f"expected a LifelongEdit environment, not {type(inner).__name__}")
    return inner
