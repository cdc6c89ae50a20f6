"""The bound on rounding: whatever honest arithmetic does lies within it, and nothing else does."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from editenv.contexts import CONTEXT, Context
from editenv.delta_files import apply_file, read_delta_file, revert_file, write_delta_file
from editenv.deltas import LowRank, dense
from editenv.identity import fingerprint
from editenv.language_model.editable_lm import EditableLM
from editenv.memories import Memory
from editenv.models import load_model
from editenv.rounding import SAMPLES, rounding_bound, sampled_positions, sampled_weights

LAST = "model.layers.2.mlp.down_proj"
SHAPE = (64, 32)


@pytest.fixture(scope="module")
def bases(model_folder):
    return {name: EditableLM(*load_model(model_folder, dtype=name), [LAST]) for name in ("float32", "bfloat16")}


def random_deltas(seed, count, scale):
    """Low-rank ones of several ranks, and dense ones."""
    generator = torch.Generator().manual_seed(seed)
    deltas = []
    for i in range(count):
        rank = 1 + 7 * i % 40
        left, right = (torch.randn(*shape, generator=generator) for shape in ((SHAPE[0], rank), (rank, SHAPE[1])))
        deltas.append({LAST: LowRank(left, scale * right / rank) if i % 3 else scale * left[:, :1] @ right[:1]})
    return deltas


def edited_and_saved(base, deltas, path, kept=None):
    """The edited model as it is loaded again; a file of deltas beside it, of the kept ones or of all."""
    lm = copy.deepcopy(base)
    before = fingerprint(lm)
    for delta in deltas:
        lm.apply(delta)
    write_delta_file(path, deltas if kept is None else kept, before, fingerprint(lm), weights=sampled_weights(lm))
    stored = lm.model.get_parameter(f"{LAST}.weight").detach().float().T  # in the model's precision
    lm.assign({LAST: stored.clone()})
    return lm


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 12),
    scale=st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 300.0]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_an_honest_revert_is_the_base_model_and_one_without_a_delta_is_not(bases, tmp_path, seed, count, scale, dtype):
    base, path = bases[dtype], tmp_path / "deltas.safetensors"
    deltas = random_deltas(seed, count, scale)
    lm = edited_and_saved(base, deltas, path)
    assert revert_file(lm, path) in ("exact", "rounding")
    half = unit_of(dtype) * float(base.weight(LAST).abs().max() + count * 40 * scale)
    missing = dense(deltas[seed % count][LAST]).abs().max()
    if missing > 4 * half + 1e-4 * count * count * scale:
        kept = [delta for i, delta in enumerate(deltas) if i != seed % count]
        lm = edited_and_saved(base, deltas, path, kept)
        with pytest.raises(ValueError, match=r"deltas\.safetensors: the result is not the base model within rounding"):
            revert_file(lm, path)


def unit_of(dtype):
    return torch.finfo(getattr(torch, dtype)).eps / 2


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 30), scale=st.sampled_from([1e-4, 0.1, 50.0]))
def test_sums_in_any_order_lie_within_the_bound(seed, count, scale):
    """Products are added one by one, backwards, or by the library: all are honest."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(SHAPE, generator=generator)
    deltas = [delta[LAST] for delta in random_deltas(seed, count, scale)]
    positions = sampled_positions(SHAPE)
    bound = rounding_bound(base.flatten().double(), deltas, positions, torch.float32, "edited").view(SHAPE)
    by_library, one_by_one = base.clone(), base.clone()
    for delta in deltas:
        if not isinstance(delta, LowRank):
            by_library, one_by_one = by_library + delta, one_by_one + delta
            continue
        by_library = by_library.addmm(delta.left, delta.right)
        for k in reversed(range(delta.left.shape[1])):
            one_by_one = one_by_one + torch.outer(delta.left[:, k], delta.right[k])
    assert ((by_library.double() - one_by_one.double()).abs() <= bound).all()
    # Nor is the bound a large one: some hundreds of times what rounding comes to here.
    exact = base.double() + sum(dense(LowRank(d.left.double(), d.right.double()) if isinstance(d, LowRank) else d.double())
                                for d in deltas)  # fmt: skip
    assert bound.max() <= 1e-7 * 2 * (42 * count) * (exact.abs().max() + 60 * scale * count + 10)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_flipped_bit_is_noticed_wherever_it_is(bases, tmp_path, dtype):
    path = tmp_path / "deltas.safetensors"
    deltas = random_deltas(3, 4, 0.1)
    lm = edited_and_saved(bases[dtype], deltas, path)
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(1)
    header = int.from_bytes(content[:8], "little") + 8
    places = torch.randint(len(content), (40,), generator=generator).tolist() + list(range(header, header + 8))
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        weights, said = lm.snapshot(), ""
        try:
            revert_file(lm, path)
        except ValueError as error:
            said = str(error)
        # What is not noticed is in the name of an entry that older files do not have: the deltas are whole.
        assert str(path) in said or (place < header and not said)
        lm.restore(weights)


def test_deltas_that_are_missing_or_not_finite_are_noticed(bases, tmp_path):
    path = tmp_path / "deltas.safetensors"
    deltas = random_deltas(3, 4, 0.1)
    before = fingerprint(bases["float32"])
    lm = edited_and_saved(bases["float32"], deltas, path)
    after = fingerprint(lm)
    nan = [*deltas[:3], {LAST: torch.full(SHAPE, float("nan"))}]
    for weights in ({}, sampled_weights(lm)):  # as older versions wrote files, and as this one does
        write_delta_file(path, nan, before, after, weights=weights)
        changed = copy.deepcopy(lm)
        with pytest.raises(ValueError, match="NaN or infinity"):
            revert_file(changed, path)
        changed = copy.deepcopy(bases["float32"])
        with pytest.raises(ValueError, match="NaN or infinity"):
            apply_file(changed, path, allow_rounding=True)


def test_another_sum_is_not_let_through_by_allow_rounding(bases, tmp_path):
    path = tmp_path / "deltas.safetensors"
    deltas = random_deltas(3, 4, 0.1)
    lm = edited_and_saved(bases["float32"], deltas, path)
    write_delta_file(path, deltas[:2], fingerprint(bases["float32"]), fingerprint(lm), weights={
        **sampled_weights(copy.deepcopy(bases["float32"])), f"edited/{LAST}": lm.weight(LAST).flatten()
    })  # fmt: skip
    with pytest.raises(ValueError, match="not the edited model within rounding"):
        apply_file(copy.deepcopy(bases["float32"]), path, allow_rounding=True)


def test_a_file_without_weights_to_compare_with_says_that_nothing_was_compared(bases, tmp_path):
    path = tmp_path / "deltas.safetensors"
    deltas = random_deltas(3, 4, 0.1)
    lm = edited_and_saved(bases["float32"], deltas, path)
    write_delta_file(path, deltas, fingerprint(bases["float32"]), fingerprint(lm))
    with pytest.warns(UserWarning, match=r"deltas\.safetensors.*cannot be checked"):
        assert revert_file(lm, path) == "unchecked"
    assert apply_file(copy.deepcopy(bases["float32"]), path) == "exact"


@pytest.mark.parametrize("kind", ["memory", "context"])
def test_a_revert_that_loses_what_was_beside_the_base_is_no_rounding(bases, tmp_path, kind):
    path, base = tmp_path / "deltas.safetensors", copy.deepcopy(bases["float32"])
    generator = torch.Generator().manual_seed(0)
    first, second = (
        {LAST: Memory("relu", *(torch.randn(2, size, generator=generator) for size in SHAPE), torch.zeros(2))}
        if kind == "memory"
        else {CONTEXT: Context({"The home of Ada is": f"{text}\n"})}
        for text in ("Rome", "Oslo")
    )
    base.apply(first)
    base.rebase(base.snapshot())
    deltas = random_deltas(3, 4, 0.1)
    assert revert_file(edited_and_saved(base, deltas, path), path) == "rounding", "it was not edited"
    lm = edited_and_saved(base, [*deltas, second], path)
    with pytest.raises(ValueError, match="the memories and the context of the result are not those of the base model"):
        revert_file(lm, path)


def test_deltas_of_a_wrong_shape_are_refused_before_any_is_added(bases, tmp_path):
    path = tmp_path / "deltas.safetensors"
    good = random_deltas(3, 2, 0.1)
    lm = copy.deepcopy(bases["float32"])
    before = lm.snapshot()[LAST]
    bad = (torch.zeros(32, 64), torch.zeros(64), torch.zeros(SHAPE, dtype=torch.complex64),
           LowRank(torch.zeros(64, 2), torch.zeros(3, 32)))  # fmt: skip
    for delta in bad:
        write_delta_file(path, [*good, {LAST: delta}], fingerprint(lm), "0" * 64)
        with pytest.raises(ValueError, match=r"deltas\.safetensors: action 3 has .*\(64, 32\)"):
            apply_file(lm, path, allow_rounding=True)
        assert torch.equal(lm.snapshot()[LAST], before)


def test_a_file_that_lacks_actions_is_refused_even_without_a_digest(bases, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "deltas.safetensors"
    edited_and_saved(bases["float32"], random_deltas(3, 4, 0.1), path)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del metadata["sha256"]
    for gone in ("1/", "3/"):
        save_file({key: value for key, value in tensors.items() if not key.startswith(gone)}, path, metadata)
        with pytest.raises(ValueError, match=r"is not whole: it holds 3 actions, and was written with 4"):
            read_delta_file(path)


def test_of_a_large_module_weights_of_all_rows_and_columns_are_compared():
    positions = sampled_positions((3072, 1024))
    assert len(positions.unique()) == SAMPLES
    assert len((positions // 1024).unique()) == 3072
    assert len((positions % 1024).unique()) == 1024
