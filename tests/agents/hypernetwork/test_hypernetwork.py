import copy
import hashlib
import json

import pytest
import torch

from agents.hypernetwork.config import PolicyConfig
from agents.hypernetwork.networks import (
    Block,
    HyperNetwork,
    MalmenPolicy,
    MendBlock,
    MendPolicy,
    Normalizer,
    load_policy,
    make_policy,
    save_policy,
)
from agents.rledit.agent import RLEdit
from editenv.language_model.editable_lm import Gradient

SHAPES = {"a.down": (12, 8), "b.down": (12, 8), "c.up": (8, 12)}
CONFIG = PolicyConfig(blocks=2, rank=3, step_size=0.7, ridge=0.3)


def random_gradients(tokens=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Gradient(
            torch.randn(tokens, d_in, generator=generator) + 0.5, 0.1 * torch.randn(tokens, d_out, generator=generator)
        )
        for name, (d_in, d_out) in SHAPES.items()
    }


@pytest.fixture
def policy():
    """With statistics, and with every parameter moved away from its start."""
    return moved(MalmenPolicy(SHAPES, CONFIG))


def moved(policy):
    torch.manual_seed(0)
    for seed in range(3):
        policy.observe(random_gradients(seed=seed))
    policy.set_scales(*({name: start + i for i, name in enumerate(SHAPES)} for start in (10.0, 3.0)))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return policy


def test_normalizer_keeps_mean_and_deviation_of_all_it_saw():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 6, generator=generator) * 5 + 100 * n for n in (1, 7, 2, 40)]
    normalizer = Normalizer(6)
    for batch in batches:
        normalizer.observe(batch)
    normalizer.observe(torch.empty(0, 6))
    variance, mean = torch.var_mean(torch.cat(batches), dim=0)
    assert normalizer.count == 50
    torch.testing.assert_close(normalizer.mean, mean)
    torch.testing.assert_close(normalizer.square / 49, variance)
    torch.testing.assert_close(normalizer(batches[3]), (batches[3] - mean) / variance.sqrt(), rtol=1e-4, atol=1e-4)


def test_normalizer_does_not_depend_on_order_and_stands_still_in_use():
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(n, 4, generator=generator) + n for n in (3, 9, 5)]
    first, second = Normalizer(4), Normalizer(4)
    for batch in batches:
        first.observe(batch)
    for batch in reversed(batches):
        second.observe(batch)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    first(batches[0])
    for name, value in first.state_dict().items():
        assert torch.equal(value, before[name])
        torch.testing.assert_close(value, second.state_dict()[name])


@pytest.mark.parametrize("constant", [0.0, 1.0])
def test_what_a_feature_that_never_varied_does_later_is_left_out(constant):
    normalizer = Normalizer(2)
    normalizer.observe(torch.tensor([[constant, 1.0], [constant, 2.0], [constant, 4.0]]))
    for later in (constant, 0.5, 3.0):
        found = normalizer(torch.tensor([[later, 3.0]]))
        torch.testing.assert_close(found, torch.tensor([[0.0, (3 - 7 / 3) / (7 / 3) ** 0.5]]))


@pytest.mark.parametrize(("keys", "grads"), [(1.0, 1e-9), (1e-9, 1.0), (1e6, 1e-4), (1e-4, 1e6)])
def test_what_comes_out_does_not_depend_on_the_units_of_keys_and_gradients(keys, grads):
    """A large model's gradients are many orders of magnitude below its keys."""
    generator = torch.Generator().manual_seed(0)
    units = torch.tensor([keys] * 3 + [grads] * 2)
    values = torch.randn(20, 5, generator=generator) * torch.tensor([1.0, 30.0, 0.0, 1.0, 0.1]) + 1
    plain, scaled = Normalizer(3, 2), Normalizer(3, 2)
    plain.observe(values)
    scaled.observe(values * units)
    expected = plain(values)
    assert expected.abs().amax(0).tolist() == [pytest.approx(2, abs=1)] * 2 + [0] + [pytest.approx(2, abs=1)] * 2
    torch.testing.assert_close(scaled(values * units), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("network", ["malmen", "mend"])
def test_a_policys_network_does_not_depend_on_those_units(network):
    torch.manual_seed(0)
    policy = make_policy({"m": (6, 4)}, PolicyConfig(network=network, blocks=2, rank=3))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    other = copy.deepcopy(policy)
    keys, grads = torch.randn(9, 6), torch.randn(9, 4)
    policy.observe({"m": Gradient(keys, grads)})
    other.observe({"m": Gradient(keys, 1e-8 * grads)})
    for mine, its in zip(
        policy.pseudo("m", Gradient(keys, grads)), other.pseudo("m", Gradient(keys, 1e-8 * grads)), strict=True
    ):
        assert mine.abs().max() > 1
        torch.testing.assert_close(its, mine, rtol=1e-3, atol=1e-4)


def test_fresh_blocks_are_the_identity_and_every_parameter_can_learn():
    torch.manual_seed(0)
    network = HyperNetwork((6, 4), modules=2, config=PolicyConfig(blocks=3, rank=5))
    x = torch.randn(7, 10)
    for block in network.blocks:
        assert torch.equal(block(x, 1), x)
    learned = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(3):
        loss = sum((block(x, module) * torch.randn(10)).sum() for block in network.blocks for module in range(2))
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            assert all(block.up.grad.abs().max() > 0 for block in network.blocks)
        for name, parameter in network.named_parameters():
            learned[name] += parameter.grad.abs()
        optimizer.step()
    for name, amount in learned.items():
        assert (amount > 0).float().mean() > 0.3, name


def test_a_block_is_its_formula(policy):
    block = policy.networks["12x8"].blocks[0]
    assert isinstance(block, Block)
    x = torch.randn(4, 20)
    bent = torch.relu(x @ block.down @ block.up + block.bias)
    torch.testing.assert_close(block(x, 1), x + block.scale[1] * bent + block.shift[1])


@pytest.mark.parametrize("preconditioned", [False, True])
def test_the_token_space_solution_is_that_of_the_normal_equations(policy, preconditioned):
    policy = policy.double()
    gradients = {n: Gradient(g.keys.double(), g.value_grads.double()) for n, g in random_gradients(seed=9).items()}
    matrices = {}
    for name, (d_in, _) in SHAPES.items():
        root = torch.randn(d_in, d_in, dtype=torch.float64, generator=torch.Generator().manual_seed(d_in))
        identity = torch.eye(d_in).double()
        matrices[name] = torch.linalg.inv(root @ root.T + identity) if preconditioned else identity
    projected = {n: matrices[n] @ g.keys.T for n, g in gradients.items()} if preconditioned else None
    deltas = policy(gradients, projected)
    for i, (name, (d_in, d_out)) in enumerate(SHAPES.items()):
        U = gradients[name].keys
        network = policy.networks[f"{d_in}x{d_out}"]
        place = [n for n, shape in SHAPES.items() if shape == (d_in, d_out)].index(name)
        pseudo_keys, pseudo_grads = network(gradients[name], place)
        output_length, key_length = (3.0 + i) ** 0.5, (10.0 + i) ** 0.5
        step = policy.log_step_size[i].exp() * output_length / (d_out**0.5 * key_length * d_in**0.5)
        V = torch.stack([-step * (U[j] @ pseudo_keys[j]) * pseudo_grads[j] for j in range(len(U))])
        ridge = policy.log_ridge[i].exp() * (1 if preconditioned else 10.0 + i)
        D = torch.linalg.inv(U.T @ U + ridge * torch.linalg.inv(matrices[name])) @ U.T @ V
        assert deltas[name].shape == (d_in, d_out)
        torch.testing.assert_close(deltas[name].dense(), D)
        assert D.abs().max() > 1e-3


def test_modules_of_one_shape_share_a_network_but_not_their_scale_and_shift(policy):
    assert set(policy.networks) == {"12x8", "8x12"}
    gradients = random_gradients()
    gradients["b.down"] = gradients["a.down"]
    first, second = (policy(gradients)[name].dense() for name in ("a.down", "b.down"))
    assert not torch.allclose(first, second)


def test_a_fresh_policy_moves_a_token_against_its_normalised_gradient():
    torch.manual_seed(0)
    policy = MalmenPolicy({"m": (12, 8)}, PolicyConfig(blocks=2, rank=3, step_size=0.5, ridge=0.2))
    keys, grads = torch.randn(50, 12), torch.randn(50, 8) * torch.arange(1.0, 9.0)
    policy.observe({"m": Gradient(keys, grads)})
    policy.set_scales({"m": 4.0}, {"m": 9.0})
    deviation, mean = torch.var_mean(torch.cat([keys, grads], 1), dim=0)
    for key, grad in zip(keys[:10], grads[:10], strict=True):
        normalised = (torch.cat([key, grad]) - mean) / deviation.sqrt()
        gate = key @ normalised[:12] / (4.0 * 12) ** 0.5
        assert gate > 0
        change = -0.5 * (9.0 / 8) ** 0.5 * gate * normalised[12:]
        delta = policy({"m": Gradient(key[None], grad[None])})["m"].dense()
        torch.testing.assert_close(delta, torch.outer(key, change) / (key @ key + 0.2 * 4.0), rtol=1e-4, atol=1e-5)


def test_looking_at_a_batch_changes_nothing_until_it_is_observed(policy):
    gradients = random_gradients(seed=4)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    first = policy(gradients)["c.up"].dense()
    assert torch.equal(first, policy(gradients)["c.up"].dense())
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    policy.observe(gradients)
    assert not torch.equal(first, policy(gradients)["c.up"].dense())


def test_a_saved_policy_acts_alike(policy, tmp_path):
    folder = tmp_path / "deep" / "folder"
    save_policy(policy, folder, {"train": {"seed": 3}})
    loaded, record = load_policy(folder)
    assert record == {"train": {"seed": 3}}
    assert loaded.config == CONFIG
    assert loaded.shapes == SHAPES
    assert not loaded.training
    gradients = random_gradients(seed=5)
    expected, found = policy(gradients), loaded(gradients)
    for name in SHAPES:
        assert torch.equal(expected[name].dense(), found[name].dense())
    assert sorted(path.name for path in folder.iterdir()) == ["policy.json", "policy.safetensors"]
    assert json.loads((folder / "policy.json").read_text())["shapes"]["c.up"] == [8, 12]


# -- MEND's form ------------------------------------------------------------------------------------------------------

MEND = PolicyConfig(network="mend", blocks=2, rank=3, step_size=0.7)


def test_a_fresh_mend_block_is_the_identity_and_scales_and_shifts_inside_the_relu():
    torch.manual_seed(0)
    block, x = MendBlock(6, 3, modules=2), torch.randn(7, 6)
    assert torch.equal(block(x, 1), x)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += torch.randn_like(parameter)
    bent = torch.relu(block.scale[1] * (x @ block.down @ block.up + block.bias) + block.shift[1])
    torch.testing.assert_close(block(x, 1), x + bent)
    assert not torch.allclose(block(x, 1), Block.forward(block, x, 1))


def test_mend_adds_up_a_rank_one_update_for_each_token():
    policy = make_policy(SHAPES, MEND)
    assert isinstance(policy, MendPolicy)
    policy = moved(policy).double()
    gradients = {n: Gradient(g.keys.double(), g.value_grads.double()) for n, g in random_gradients(seed=9).items()}
    deltas = policy(gradients)
    for i, (name, (d_in, d_out)) in enumerate(SHAPES.items()):
        place = [n for n, shape in SHAPES.items() if shape == (d_in, d_out)].index(name)
        pseudo_keys, pseudo_grads = policy.networks[f"{d_in}x{d_out}"](gradients[name], place)
        output_length, key_length = (3.0 + i) ** 0.5, (10.0 + i) ** 0.5
        step = policy.log_step_size[i].exp() * output_length / (d_out**0.5 * key_length * d_in**0.5)
        expected = sum(-step * torch.outer(key, grad) for key, grad in zip(pseudo_keys, pseudo_grads, strict=True))
        torch.testing.assert_close(deltas[name].dense(), expected)
        assert deltas[name].left.shape == (d_in, 5)
    with pytest.raises(ValueError, match="ridge"):
        policy(gradients, {n: g.keys.T for n, g in gradients.items()})


def test_a_saved_mend_policy_is_one_again(tmp_path):
    policy = moved(make_policy(SHAPES, MEND))
    save_policy(policy, tmp_path, {})
    loaded, _ = load_policy(tmp_path)
    assert isinstance(loaded, MendPolicy)
    assert loaded.config == MEND
    gradients = random_gradients(seed=5)
    assert all(torch.equal(loaded(gradients)[name].dense(), policy(gradients)[name].dense()) for name in SHAPES)


def test_a_policy_saved_before_there_were_two_forms_is_malmens(policy, tmp_path):
    save_policy(policy, tmp_path, {})
    record = json.loads((tmp_path / "policy.json").read_text())
    del record["policy"]["network"], record["seal"]
    (tmp_path / "policy.json").write_text(json.dumps(record))
    assert isinstance(load_policy(tmp_path)[0], MalmenPolicy)


def test_a_folder_without_a_policy_says_what_is_missing(policy, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"policy\.json"):
        load_policy(tmp_path)
    save_policy(policy, tmp_path, {})
    (tmp_path / "policy.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"policy\.safetensors.*agents\.rledit"):
        load_policy(tmp_path)


@pytest.mark.parametrize("network", ["malmen", "mend"])
def test_modules_that_are_edited_together_share_the_step(network):
    """Each layer's change reaches the model's output: a whole step in each would move it as many times as far."""
    config = PolicyConfig(network=network, rank=3, step_size=0.8)
    gradient = Gradient(torch.randn(4, 12), torch.randn(4, 8))
    alone, together = (make_policy(dict.fromkeys(names, (12, 8)), config) for names in ("a", "abcd"))
    for policy in (alone, together):
        policy.observe({"a": gradient})  # one network for all of them
    whole = alone({"a": gradient})["a"].dense()
    for delta in together(dict.fromkeys("abcd", gradient)).values():
        torch.testing.assert_close(delta.dense(), whole / 4)
    assert whole.norm() > 0


# -- damaged folders --------------------------------------------------------------------------------------------------


def record_with(**changes):
    def damage(folder):
        path = folder / "policy.json"
        record = {**json.loads(path.read_text()), **changes}
        del record["seal"]  # as by hand, or by another version
        path.write_text(json.dumps(record))

    return damage


def other_weights(folder):
    save_policy(make_policy({"a.down": (12, 8)}, CONFIG), folder / "other", {})
    (folder / "other/policy.safetensors").rename(folder / "policy.safetensors")


def other_shapes(folder):
    other_weights(folder)
    record_with(weights_sha256=hashlib.sha256((folder / "policy.safetensors").read_bytes()).hexdigest())(folder)


def cut(name):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def flipped(name, place):
    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 4
        (folder / name).write_bytes(content)

    return damage


def folder_in_place_of(name):
    def damage(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


DAMAGES = {
    "weights missing": (lambda folder: (folder / "policy.safetensors").unlink(), r"holds no policy\.safetensors"),
    "weights empty": (lambda folder: (folder / "policy.safetensors").write_bytes(b""), r"policy\.safetensors is not"),
    "weights cut": (cut("policy.safetensors"), r"policy\.safetensors is not"),
    "weights flipped": (flipped("policy.safetensors", -5), r"policy\.safetensors is not the file that policy\.json"),
    "weights a folder": (folder_in_place_of("policy.safetensors"), r"holds no policy\.safetensors"),
    "other weights": (other_weights, r"policy\.safetensors is not the file that policy\.json"),
    "other shapes": (other_shapes, r"policy\.safetensors does not fit policy\.json .*"),
    "record empty": (lambda folder: (folder / "policy.json").write_text(""), r"policy\.json is not JSON"),
    "record cut": (cut("policy.json"), r"policy\.json is not JSON"),
    "record flipped": (flipped("policy.json", 40), r"policy\.json"),
    "record a list": (lambda folder: (folder / "policy.json").write_text("[1]"), r"policy\.json must hold a JSON object"),
    "record a folder": (folder_in_place_of("policy.json"), r"holds no policy\.json"),
    "record of nothing": (lambda folder: (folder / "policy.json").write_text("{}"), r"policy\.json does not describe"),
    "no such network": (record_with(policy={"network": "other"}), r"policy\.json does not describe .*not 'other'"),
    "another version": (record_with(policy={"heads": 3}), r"policy\.json does not describe .*'heads'"),
    "wrong type": (record_with(policy={"rank": "three"}), r"policy\.json does not describe .*"),
    "odd shapes": (record_with(shapes={"m": [3]}), r"policy\.json does not describe .*"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_with_the_file_that_is_damaged(policy, tmp_path, damage):
    save_policy(policy, tmp_path, {"train": {}})
    do, message = DAMAGES[damage]
    do(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as refused:
        load_policy(tmp_path)
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize("train", [None, [], {}, {"policy": {"heads": 3}}, {"policy": {}, "horizon": "many"}])
def test_a_policy_whose_training_is_not_of_this_version_is_refused(policy, tmp_path, train):
    save_policy(policy, tmp_path, {"train": train})
    with pytest.raises(ValueError, match=r"policy\.json does not describe a training"):
        RLEdit(policy=tmp_path)


def test_a_policy_from_before_there_were_digests_is_taken(policy, tmp_path):
    save_policy(policy, tmp_path, {"train": {"seed": 3}})
    record = json.loads((tmp_path / "policy.json").read_text())
    del record["seal"], record["weights_sha256"]
    (tmp_path / "policy.json").write_text(json.dumps(record))
    loaded, record = load_policy(tmp_path)
    assert record == {"train": {"seed": 3}}
    assert all(torch.equal(value, policy.state_dict()[name]) for name, value in loaded.state_dict().items())
