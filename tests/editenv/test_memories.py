"""A side memory: its gates by hand, in every way a model is run, and gone bit for bit at a reset."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import save_file

from editenv.contexts import CONTEXT, Context, context_of, removal
from editenv.delta_files import read_delta_file, write_delta_file
from editenv.deltas import LowRank, dense
from editenv.env import RefusedActionError
from editenv.evaluation import metrics
from editenv.evaluation.batch import encode_evaluation
from editenv.identity import fingerprint
from editenv.language_model.editable_lm import EditableLM
from editenv.language_model.hooks import hooked
from editenv.language_model.subjects import subject_tokens
from editenv.language_model.suffix import SuffixRun
from editenv.memories import Memory, apply, load_memories, merged, nearest_keys, no_memory, save_memories, update
from editenv.models import load_model, with_memory

LAST = "layers.2.mlp.down_proj"
EARLIER = "layers.1.mlp.down_proj"
GATES = ("relu", "ball", "nearest", "margin")


def random_memory(gate, shape, entries=5, seed=0, threshold=None):
    """By default one that fires at many queries, and not at all of them."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(entries, size, generator=generator) for size in shape)
    if gate == "margin":
        keys, values = torch.zeros(entries, 0), torch.randn(entries, *shape, generator=generator)
    threshold = {"relu": 0.1, "ball": 1e3, "nearest": 0.0, "margin": 0.5}[gate] if threshold is None else threshold
    return Memory(gate, keys, values, torch.full((entries,), threshold))


def by_hand(memory, x, y):
    """The table of editenv/memories.py for one query, entry by entry in float64."""
    x, y, keys = x.double(), y.double(), memory.keys.double()
    if memory.gate == "relu":
        return y + sum(
            max(float(k @ x - t), 0.0) * v for k, v, t in zip(keys, memory.values, memory.thresholds, strict=True)
        )
    if memory.gate == "ball":
        distances = [float((k - x).square().sum().sqrt()) for k in keys]
        i = distances.index(min(distances))
        return memory.values[i].double() if distances[i] <= memory.thresholds[i] else y
    if memory.gate == "margin":
        products = [x @ value.double() for value in memory.values]
        beyond = [p for p, t in zip(products, memory.thresholds, strict=True) if float(p.square().sum().sqrt()) > t]
        return y + max(beyond, key=lambda p: float(p.square().sum())) if beyond else y
    cosines = [float(k @ x / (k.norm() * x.norm())) for k in keys]
    i = cosines.index(max(cosines))
    return y + memory.values[i].double() if cosines[i] >= memory.thresholds[i] else y


@pytest.mark.parametrize("gate", GATES)
def test_each_gate_is_its_formula(gate):
    memory = random_memory(gate, (4, 3), threshold={"relu": 0.5, "ball": 1.8, "nearest": 0.6, "margin": 5.0}[gate])
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 30, 4, generator=generator), torch.randn(2, 30, 3, generator=generator)
    result = apply(memory, x, y)
    expected = torch.stack([torch.stack([by_hand(memory, *one) for one in zip(*rows)]) for rows in zip(x, y)])  # noqa: B905
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-5)
    changed = (result != y).any(-1)
    assert changed.any()
    assert not changed.all(), "a gate that always fires tests nothing"


def test_the_nearest_of_keys_that_are_close_to_each_other_and_far_from_zero():
    """In float32 |k|^2 / 2 - k x of keys around (1000, 0) would be off by more than their distances."""
    keys = torch.tensor([[1000.0, 0.0], [1000.0, 0.002], [1000.0, 0.004]])
    memory = Memory("ball", keys, torch.eye(3), torch.full((3,), 1e-4))
    assert torch.equal(apply(memory, keys, torch.zeros(3, 3)), torch.eye(3))


def test_the_nearest_key_is_that_of_all_distances():
    generator = torch.Generator().manual_seed(2)
    centres = 100 * torch.randn(5, 30, generator=generator)
    keys = (centres[:, None] + 0.01 * torch.randn(5, 10, 30, generator=generator)).flatten(0, 1)
    queries = keys + 0.003 * torch.randn(50, 30, generator=generator)
    expected = torch.cdist(queries.double(), keys.double(), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
    assert torch.equal(nearest_keys(keys, queries), expected)
    assert nearest_keys(keys, queries.view(5, 10, 30)).shape == (5, 10)


@pytest.mark.parametrize("gate", GATES)
def test_a_memory_works_in_bfloat16_and_without_entries_leaves_the_output_as_it_is(gate):
    x, y = torch.randn(3, 4, dtype=torch.bfloat16), torch.randn(3, 2, dtype=torch.bfloat16)
    memory = random_memory(gate, (4, 2))
    assert apply(memory, x, y).dtype == torch.bfloat16
    expected = torch.stack([by_hand(memory, *one) for one in zip(x, y, strict=True)])
    torch.testing.assert_close(apply(memory, x, y).double(), expected, rtol=2e-2, atol=2e-2)
    assert apply(random_memory(gate, (4, 2), entries=0), x, y) is y


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("soft", (2, 4), (2, 3), (2,)), "'soft'"), (("ball", (2, 4), (3, 3), (2,)), r"\(2, 4\) and \(3, 3\)"),
     (("ball", (2, 4), (2, 3), (3,)), "thresholds must be one for each of the 2 keys"),
     (("ball", (4,), (2, 3), (2,)), r"\(4,\)"), (("margin", (2, 4), (2, 4, 3), (2,)), r"keys \(m, 0\)")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(arguments, words):
    gate, *shapes = arguments
    with pytest.raises(ValueError, match=words):
        Memory(gate, *(torch.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match=r"values must be a tensor of real numbers, not one of torch\.int64"):
        Memory("ball", torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.long), torch.zeros(1))


def test_entries_are_put_into_a_memory_and_found_again():
    before = random_memory("ball", (4, 3))
    after = Memory("ball", *(torch.cat([part, part[:2] + 1]) for part in before.parts().values()))
    values = after.values.clone()
    values[1] += 1
    after = Memory("ball", after.keys, values, after.thresholds)
    entries = update(before, after)
    assert entries.rows.tolist() == [1, 5, 6]
    assert all(torch.equal(part, after.parts()[name]) for name, part in merged(before, entries).parts().items())
    assert len(update(before, before)) == 0
    assert len(merged(before, update(before, before))) == len(before)
    assert update(after, before).rows is None, "a shorter memory is a whole one"
    assert update(None, after) is after
    first = merged(None, before.select(torch.arange(5)))
    assert torch.equal(first.keys, before.keys)


@pytest.mark.parametrize(
    ("rows", "gate", "words"),
    [([6], "ball", r"rows \[6\] do not go on a memory of 5 entries"), ([-1], "ball", "do not go on"),
     ([0], "relu", r"gate relu for \(4, 3\) do not fit one of gate ball"), ([0, 0], "ball", "2 different int64 numbers")],
)  # fmt: skip
def test_entries_that_do_not_fit_are_refused(rows, gate, words):
    some = random_memory(gate, (4, 3), entries=len(rows))
    with pytest.raises(ValueError, match=words):
        merged(random_memory("ball", (4, 3)), Memory(gate, *some.parts().values(), torch.tensor(rows)))


def test_a_file_of_memories_gives_the_same_bits(tmp_path):
    path = tmp_path / "memory.safetensors"
    memories = {f"layer.{gate}": random_memory(gate, (4, 3)) for gate in GATES}
    save_memories(path, memories)
    loaded = load_memories(path)
    assert loaded.keys() == memories.keys()
    for name, memory in memories.items():
        assert loaded[name].gate == memory.gate
        assert all(torch.equal(part, loaded[name].parts()[of]) for of, part in memory.parts().items())


def test_a_file_of_memories_and_deltas_may_have_a_tensor_twice(tmp_path):
    keys, values, none = torch.randn(3, 4), torch.randn(3, 2), torch.zeros(3)
    memories = {"a": Memory("ball", keys, values, none), "b": Memory("ball", keys, values.flip(0), none)}
    save_memories(tmp_path / "memory.safetensors", memories)
    loaded = load_memories(tmp_path / "memory.safetensors")
    assert all(torch.equal(loaded[name].values, memory.values) for name, memory in memories.items())
    one_token = torch.randn(1, 4)
    actions = [{"a": LowRank(one_token.T, one_token)}, {"a": LowRank(one_token.T, torch.ones(1, 4))}]
    path = tmp_path / "deltas.safetensors"
    write_delta_file(path, actions, "0", "1")
    read, _ = read_delta_file(path)
    assert all(torch.equal(dense(ours["a"]), dense(its["a"])) for ours, its in zip(actions, read, strict=True))


def test_a_file_that_is_none_is_refused_by_name(tmp_path):
    path = tmp_path / "memory.safetensors"
    with pytest.raises(FileNotFoundError, match=r"memory\.safetensors"):
        load_memories(path)
    path.write_bytes(b"{")
    with pytest.raises(ValueError, match=r"memory\.safetensors is not a safetensors file"):
        load_memories(path)
    save_file({"a/keys": torch.zeros(1, 2)}, path)
    with pytest.raises(ValueError, match="is not a file of memories"):
        load_memories(path)
    parts = {"a/keys": torch.zeros(1, 2), "a/values": torch.zeros(2, 2), "a/thresholds": torch.zeros(1)}
    save_file(parts, path, {"format": "lifelongedit-memory-1", "gates": '{"a": "ball", "b": "ball"}'})
    with pytest.raises(ValueError, match=r"memory\.safetensors: a: memory: keys"):
        load_memories(path)
    save_file(
        parts | {"a/values": torch.zeros(1, 2)}, path, {"format": "lifelongedit-memory-1", "gates": '{"b": "ball"}'}
    )
    with pytest.raises(ValueError, match="the memory of b lacks keys, values, thresholds"):
        load_memories(path)


# -- in a model ---------------------------------------------------------------------------------------------------


class WithMemory(torch.nn.Module):
    """A linear module with a memory, written out: what stands in the place of an edited module in a plain model."""

    def __init__(self, linear, memory):
        super().__init__()
        self.linear, self.memory = linear, memory

    def forward(self, x):
        rows = [
            by_hand(self.memory, q, out) for q, out in zip(x.flatten(0, -2), self.linear(x).flatten(0, -2), strict=True)
        ]
        return torch.stack(rows).to(x.dtype).unflatten(0, x.shape[:-1])


def plain_model(base, memories):
    """A copy of the base model, never an EditableLM, with modules that have the memories."""
    plain = copy.deepcopy(base)
    for name, memory in memories.items():
        parent, _, child = name.rpartition(".")
        setattr(plain.get_submodule(parent), child, WithMemory(plain.get_submodule(name), memory))
    return plain


def full_name(lm, end):
    return next(name for name in lm.modules if name.endswith(end))


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("modules", [(LAST,), (EARLIER, LAST)], ids=["keys frozen", "two layers"])
def test_logits_and_generation_are_those_of_a_plain_model_with_the_memory(make_lm, base, edits, gate, modules):
    lm = make_lm(*modules)
    memories = {name: random_memory(gate, lm.shape(name), seed=i) for i, name in enumerate(lm.modules)}
    prompts = lm.encode([e.prompt for e in edits], [e.target for e in edits])
    unedited = lm.logits(prompts)
    lm.apply(memories)
    logits = lm.logits(prompts)
    assert (logits - unedited).abs().max() > 0.1
    plain, row = plain_model(base, memories), 0
    for edit in edits:
        ((prompt, answer),) = lm.tokenize([edit.prompt], [edit.target])
        with torch.no_grad():
            expected = plain(input_ids=torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :]
        torch.testing.assert_close(logits[row : row + len(answer)], expected, rtol=1e-3, atol=1e-3)
        row += len(answer)
    texts = [edit.prompt for edit in edits[:3]]
    said = metrics.generate(lm, texts, 5, unfinished=True)
    assert said != metrics.generate(make_lm(*modules), texts, 5, unfinished=True)
    lm_of_plain = copy.copy(lm)
    lm_of_plain.model = plain
    assert said == metrics.generate(lm_of_plain, texts, 5, unfinished=True)


def test_prompts_run_from_their_subject_on_have_the_memory(make_lm, edits):
    lm = make_lm(EARLIER, LAST)
    lm.apply({name: random_memory("relu", lm.shape(name)) for name in lm.modules})
    prompts = lm.encode([e.prompt for e in edits], [e.target for e in edits])
    run = SuffixRun(lm, prompts, subject_tokens(lm, edits), lm.modules[full_name(lm, EARLIER)])
    torch.testing.assert_close(run.logits(), lm.logits(prompts), rtol=1e-3, atol=1e-3)
    remembering = run.logits()
    with lm.at_initial_weights():
        assert (run.logits() - remembering).abs().max() > 0.1, "the memory is applied in the run itself"


@pytest.mark.parametrize("gate", GATES)
def test_gradients_are_those_of_the_weight(make_lm, edits, gate):
    """Finite differences of the loss along random directions of the weight, in a model with a memory."""
    lm = make_lm(EARLIER)
    (name,) = lm.modules
    threshold = {"relu": 0.1, "ball": 8.0, "nearest": 0.1, "margin": 20.0}[gate]
    lm.apply({name: random_memory(gate, lm.shape(name), threshold=threshold)})
    prompts = lm.encode([e.prompt for e in edits], [e.target for e in edits])
    _, gradients = lm.gradients(prompts, lambda logits: logits.square().mean(), "all")
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        direction = torch.randn(lm.shape(name), generator=generator)
        values = []
        for step in (1e-3, -1e-3):
            with lm.unchanged():
                lm.apply({name: step * direction})
                values.append(float(lm.logits(prompts).double().square().mean()))
        slope = (values[0] - values[1]) / 2e-3
        assert float((gradients[name].dense() * direction).sum()) == pytest.approx(slope, rel=2e-2, abs=1e-2)


def test_theta_0_has_no_memory_and_it_comes_back(make_lm, edits):
    lm = make_lm()
    (name,) = lm.modules
    prompts = lm.encode([e.prompt for e in edits], [e.target for e in edits])
    unedited, base_print = lm.logits(prompts), fingerprint(lm)
    memory = random_memory("ball", lm.shape(name))
    lm.apply({name: memory})
    edited = lm.logits(prompts)
    assert fingerprint(lm) != base_print
    with lm.at_initial_weights():
        assert torch.equal(lm.logits(prompts), unedited)
        assert fingerprint(lm) == base_print
    assert torch.equal(lm.logits(prompts), edited)
    with lm.unchanged():
        lm.apply({name: no_memory(lm.shape(name))})
        assert torch.equal(lm.logits(prompts), unedited)
    assert torch.equal(lm.logits(prompts), edited)
    remembering = lm.snapshot()
    lm.restore()
    assert not lm.memories
    assert torch.equal(lm.logits(prompts), unedited)
    lm.restore(pickle.loads(pickle.dumps(remembering)))
    assert torch.equal(lm.logits(prompts), edited)
    lm.rebase(remembering)
    lm.apply({name: no_memory(lm.shape(name))})
    with lm.at_initial_weights():
        assert torch.equal(lm.logits(prompts), edited)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda lm: pickle.loads(pickle.dumps(lm))], ids=["deepcopy", "pickle"]
)
def test_a_memory_is_one_model_s_alone(make_lm, base, tokenizer, edits, copied):
    lm, other = make_lm(), EditableLM(base, tokenizer, [LAST])
    (name,) = lm.modules
    prompts = lm.encode([e.prompt for e in edits], [e.target for e in edits])
    unedited = lm.logits(prompts)
    lm.apply({name: random_memory("relu", lm.shape(name))})
    edited = lm.logits(prompts)
    assert torch.equal(other.logits(prompts), unedited)
    twin = copied(lm)
    assert torch.equal(twin.logits(prompts), edited)
    twin.restore()
    assert torch.equal(twin.logits(prompts), unedited)
    assert torch.equal(lm.logits(prompts), edited)


# -- in the environment -------------------------------------------------------------------------------------------


def test_a_step_with_a_memory_is_judged_with_it_and_a_reset_clears_it(make_env, small_world):
    env = make_env()
    first, _ = env.reset(seed=0)
    lm = env.language_model
    memories = {name: random_memory("relu", lm.shape(name), seed=i) for i, name in enumerate(lm.modules)}
    batch = env.training_targets
    _, reward, *_, info = env.step(memories)
    assert info["reward_terms"]["regularization"] == 0, "no weight has moved"
    other = make_env()
    other.reset(seed=0)
    other.language_model.apply(memories)
    assert info["reward_terms"] == other.judge({}).as_dict()
    assert reward == other.judge({}).reward
    assert info["efficacy"] == metrics.teacher_forced(lm, encode_evaluation(lm, batch.edits)).percentages()["efficacy"]
    again, _ = env.reset(seed=0)
    assert not lm.memories
    for name, part in first.items():
        assert all((part[of] == again[name][of]).all() for of in part), "the same bits as before the memory"


def test_an_action_may_mix_both_kinds_and_a_memory_stays_until_it_is_replaced(make_env, small_world):
    env = make_env()
    env.reset(seed=0)
    lm = env.language_model
    first, second = lm.modules
    before = lm.weight(first).clone()
    memory = random_memory("ball", lm.shape(second))
    env.step({first: torch.ones(lm.shape(first)), second: memory})
    torch.testing.assert_close(lm.weight(first), before + 1)
    nothing = {
        name: LowRank(torch.zeros(lm.shape(name)[0], 0), torch.zeros(0, lm.shape(name)[1])) for name in lm.modules
    }
    env.step(nothing)
    assert torch.equal(lm.memories[second].keys, memory.keys)
    env.step(nothing | {second: no_memory(lm.shape(second))})
    assert not lm.memories


def test_a_wrong_memory_changes_nothing(make_env, small_world):
    env = make_env()
    env.reset(seed=0)
    lm = env.language_model
    first, second = lm.modules
    before = fingerprint(lm)
    good = random_memory("ball", lm.shape(first))
    with pytest.raises(ValueError, match=f"{second}' expects a memory for .64, 32., was given one for .3, 32."):
        env.step({first: good, second: random_memory("ball", (3, 32))})
    far = random_memory("ball", lm.shape(second), entries=1)
    far = Memory("ball", *far.parts().values(), torch.tensor([7]))
    with pytest.raises(ValueError, match=f"{second}': memory: rows .7. do not go on a memory of 0 entries"):
        env.step({first: good, second: far})
    broken = Memory("ball", good.keys, good.values * torch.inf, good.thresholds)
    with pytest.raises(RefusedActionError, match="NaN or infinity in its values"):
        env.step({first: good, second: broken})
    assert fingerprint(lm) == before
    assert env.batches_done == 0


def test_the_hook_is_beside_other_hooks(make_lm, edits):
    """What another hook on the module sees is what the module says, its memory included."""
    lm = make_lm()
    (name,) = lm.modules
    prompts = lm.encode([e.prompt for e in edits], [e.target for e in edits])
    memory, seen = random_memory("relu", lm.shape(name)), []
    lm.apply({name: memory})
    with hooked(lm.modules[name].register_forward_hook(lambda _, args, output: seen.append((args[0], output)))):
        lm.logits(prompts)
    x, output = seen[0]
    torch.testing.assert_close(output, apply(memory, x, torch.nn.functional.linear(x, lm.modules[name].weight)))


def test_a_folder_whose_base_has_memories_itself_says_all_that_is_beside_the_model(base, model_folder, tmp_path, edits):
    """A memory that is beside an edited module is the edited model's own; one beside another module stays."""
    first, second = tmp_path / "first", tmp_path / "second"
    lm = EditableLM(*load_model(model_folder), [LAST, EARLIER])
    context = Context({edits[0].prompt: f"{edits[0].prompt} Rome.\n"})
    lm.apply({name: random_memory("relu", lm.shape(name)) for name in lm.modules} | {CONTEXT: context})
    first.mkdir()
    with_memory.write(first, lm.model, model_folder, lm.memories, lm.context)

    again = EditableLM(*load_model(str(first)), [LAST])
    again.apply({full_name(again, LAST): random_memory("relu", again.shape(full_name(again, LAST)), seed=1)})
    again.apply({CONTEXT: removal(context)})
    second.mkdir()
    with_memory.write(second, again.model, str(first), again.memories, again.context)
    model, _ = load_model(str(second))
    ids = torch.arange(12)[None]
    memories = {full_name(lm, EARLIER): lm.memories[full_name(lm, EARLIER)], **again.memories}
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, plain_model(base, memories)(ids).logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(model(ids).logits, again.model(ids).logits)
    assert context_of(model) is None
    assert context_of(load_model(str(first))[0]) is not None
