"""The comparison with public code, without public code: clones that a test writes itself."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import agreement
from benchmarks.agreement import Args, as_markdown, chosen_cases, closest, main, read, run_case
from benchmarks.agreement_cases import CASES, rect
from benchmarks.agreement_cases.comparison import compared, distance
from benchmarks.agreement_cases.locate_then_edit import public_model
from benchmarks.agreement_cases.networks import malmen_policy, our_gradients, public_gradients
from benchmarks.agreement_cases.public_code import OnCPU, Package, Repository, imported, leave_out, without_init
from benchmarks.agreement_cases.tiny_model import TinyModel, labelled
from benchmarks.documents import rewritten
from editenv.language_model.editable_lm import Gradient

RECORDED = Path(__file__).parents[2] / "docs" / "results" / "agreement.json"
RECT = """
from ...nothing_of_this import neither_of_this

def set_min_to_zero(relative, update, share):
    smallest = relative.reshape(-1).argsort()[: int(relative.size * share)]
    update.view(-1)[smallest] = 0
"""
"""What the comparison calls in RECT's repository, as a stranger may have written it."""


def git(folder, *arguments):
    identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def clones(tmp_path, monkeypatch):
    """A folder with RECT's repository in it, which is all that is compared; everything runs in this process."""
    rome = tmp_path / "clones/Model-Editing-Hurt/easyeditor/models/rome/rome_main.py"
    rome.parent.mkdir(parents=True)
    rome.write_text(RECT.replace("from ...nothing_of_this import neither_of_this\n", ""), encoding="utf-8")
    folder = tmp_path / "clones/Model-Editing-Hurt"
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "all")
    monkeypatch.setattr(rect, "SOURCE", Repository("JasonForJoy/Model-Editing-Hurt", git(folder, "rev-parse", "HEAD")))
    monkeypatch.setattr(agreement, "CASES", {"rect": CASES["rect"]})
    monkeypatch.setattr(agreement, "in_own_process", run_case)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path / "clones"
    for name in [name for name in sys.modules if name.partition(".")[0] == "easyeditor"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyModel.made_in(tmp_path_factory.mktemp("tiny"))


# -- the arithmetic ---------------------------------------------------------------------------------------------------


def test_relative_difference_and_cosine_by_hand():
    public, ours = {"a": torch.tensor([[3.0], [4.0]])}, {"a": torch.tensor([[3.0], [0.0]])}
    assert distance(public, ours) == pytest.approx((4 / 5, 9 / (5 * 3)))


def test_all_modules_count_as_one_vector():
    public = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    assert distance(public, {"b": torch.tensor([4.0]), "a": torch.tensor([0.0])}) == pytest.approx((3 / 5, 4 / 5))


def test_it_is_taken_in_double_precision():
    public, ours = {"a": torch.full((1000,), 1e-30)}, {"a": torch.full((1000,), 1.0001e-30)}
    relative, cosine = distance(public, ours)
    assert relative == pytest.approx(1e-4, rel=1e-3)
    assert cosine == pytest.approx(1)


def test_nothing_has_no_direction():
    assert distance({"a": torch.ones(2)}, {"a": torch.zeros(2)}) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("public", "ours", "message"),
    [
        ({"a": torch.ones(1)}, {"b": torch.ones(1)}, "public code has a; this project b"),
        ({"a": torch.ones(2, 3)}, {"a": torch.ones(3, 2)}, r"a is \(2, 3\) in public code and \(3, 2\) here"),
        ({"a": torch.tensor([torch.nan])}, {"a": torch.ones(1)}, "public code's result is not finite"),
        ({"a": torch.ones(1)}, {"a": torch.tensor([torch.inf])}, "this project's result is not finite"),
        ({"a": torch.zeros(1)}, {"a": torch.ones(1)}, "public code's result is zero"),
    ],
)
def test_what_cannot_be_compared_is_said(public, ours, message):
    with pytest.raises(ValueError, match=rf"^rome, the delta: {message}"):
        compared("rome", "the delta", public, ours)


# -- clones -----------------------------------------------------------------------------------------------------------


def test_every_missing_clone_is_named_with_its_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "in_own_process", lambda case, clone: pytest.fail("compared all the same"))
    with pytest.raises(SystemExit) as stopped:
        main(Args(public=tmp_path, methods=("rledit", "rome")))
    first, second = str(stopped.value).splitlines()
    assert f"git clone https://github.com/zhrli324/RLEdit {tmp_path / 'RLEdit'}" in first
    assert "checkout c6576a1e8e8a122c54d61ec5580ec7397e740a42" in first
    assert "kmeng01/rome" in second


def test_another_commit_is_refused(clones):
    git(clones / "Model-Editing-Hurt", "commit", "--quiet", "--allow-empty", "--message", "later")
    with pytest.raises(SystemExit, match=rf"the comparison is with {rect.SOURCE.commit}: git -C .* checkout"):
        main(Args(public=clones))


def test_changed_code_is_refused(clones):
    file = clones / "Model-Editing-Hurt/easyeditor/models/rome/rome_main.py"
    file.write_text(RECT, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"easyeditor/models/rome/rome_main\.py is not as it was committed"):
        main(Args(public=clones))


def test_a_folder_that_is_no_clone_is_refused(tmp_path):
    """Even where it lies in another repository, as in this one."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "rome").mkdir()
    with pytest.raises(ValueError, match="stands at no commit; the comparison is with abc"):
        Repository("kmeng01/rome", "abc").checked_out(tmp_path)


def test_a_package_that_is_missing_is_said():
    assert Package("torch").checked_out(Path()) == torch.__version__.partition("+")[0] or torch.__version__
    with pytest.raises(FileNotFoundError, match="pip install no-such-package-here"):
        Package("no-such-package-here").checked_out(Path())


def test_an_unknown_method_is_refused():
    with pytest.raises(
        ValueError, match="'no-edit' is not compared with public code; there are alphaedit, anyedit, dafnet, "
    ):
        chosen_cases(["rledit", "no-edit"])
    assert chosen_cases(["rect"]) == ["alphaedit", "rect"]
    assert chosen_cases([]) == list(CASES)


# -- a comparison from the command to the document ----------------------------------------------------------------------


def test_a_repository_that_agrees(clones, tmp_path, capsys):
    main(Args(public=clones, output=tmp_path / "out/agreement.json"))
    shown = capsys.readouterr().out
    (row,) = read(tmp_path / "out/agreement.json")
    assert (row["method"], row["repository"]) == ("rect", "JasonForJoy/Model-Editing-Hurt")
    assert row["commit"] == rect.SOURCE.commit
    assert row["relative_difference"] == 0
    page = tmp_path / "page.md"
    page.write_text("<!-- agreement: out/agreement.json -->\n<!-- end -->\n", encoding="utf-8")
    assert rewritten(page) == f"<!-- agreement: out/agreement.json -->\n{shown}<!-- end -->\n"


def test_code_that_fails_is_named(clones):
    folder = clones / "Model-Editing-Hurt"
    (folder / "easyeditor/models/rome/rome_main.py").write_text("set_min_to_zero = None", encoding="utf-8")
    git(folder, "commit", "--quiet", "--all", "--message", "broken")
    rect.SOURCE = Repository(rect.SOURCE.name, git(folder, "rev-parse", "HEAD"))
    with pytest.raises(RuntimeError, match=r"^the comparison with JasonForJoy/Model-Editing-Hurt failed: 'NoneType'"):
        main(Args(public=clones))


@pytest.mark.slow  # a process that imports torch and transformers
def test_it_runs_in_a_process_of_its_own(clones, tmp_path, monkeypatch):
    monkeypatch.undo()
    commit = git(clones / "Model-Editing-Hurt", "rev-parse", "HEAD")
    monkeypatch.setattr(rect, "SOURCE", Repository("JasonForJoy/Model-Editing-Hurt", commit))
    monkeypatch.setattr(agreement, "CASES", {"rect": CASES["rect"]})
    main(Args(public=clones, output=tmp_path / "agreement.json"))
    assert read(tmp_path / "agreement.json")[0]["relative_difference"] == 0
    assert "easyeditor" not in sys.modules


def test_a_repository_that_does_something_else(clones, tmp_path):
    """It keeps three tenths of the entries instead of two: of random ones, the difference can be computed."""
    file = clones / "Model-Editing-Hurt/easyeditor/models/rome/rome_main.py"
    file.write_text(file.read_text(encoding="utf-8").replace("size * share", "size * 0.7"), encoding="utf-8")
    git(clones / "Model-Editing-Hurt", "commit", "--quiet", "--all", "--message", "three tenths")
    rect.SOURCE = Repository(rect.SOURCE.name, git(clones / "Model-Editing-Hurt", "rev-parse", "HEAD"))
    main(Args(public=clones, output=tmp_path / "agreement.json"))
    (row,) = read(tmp_path / "agreement.json")
    # What both keep is the same, so that the cosine is |ours| / |public| and the rest follows from Pythagoras.
    assert row["relative_difference"] == pytest.approx((1 - row["cosine"] ** 2) ** 0.5, rel=1e-2)
    assert 0.3 < row["relative_difference"] < 0.8


def test_the_closest_comparison_of_each_thing():
    keys = ("method", "repository", "compared", "relative_difference")
    values = [("a", "x", "delta", 0.5), ("a", "x", "delta", 1e-6), ("a", "y", "delta", 0.2)]
    values += [("a", "x", "gradient", 0.1), ("b", "x", "delta", 0.1), ("a", "x", "delta", 0.3)]
    rows = closest([dict(zip(keys, row, strict=True)) for row in values])
    assert [tuple(row.values()) for row in rows] == [values[1], *values[2:5]]


def test_a_comment_that_cannot_be_followed_is_said(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- agreement: agreement.json -->\n<!-- end -->\n", encoding="utf-8")
    (tmp_path / "agreement.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"page\.md, line 1: .*agreement\.json is no file of python -m benchmarks"):
        rewritten(page)


def test_what_is_recorded_is_rounding_or_explained():
    rows = read(RECORDED)
    assert {row["method"] for row in rows} == {method for methods in CASES.values() for method in methods}
    for row in rows:
        assert (row["relative_difference"] < 5e-5) == (row["explanation"] == "rounding"), row
    for method in {row["method"] for row in rows}:
        assert min(row["relative_difference"] for row in rows if row["method"] == method) < 5e-5, method
    table = as_markdown(rows).splitlines()
    assert len(table) == len(rows) + 2


# -- what public code is given ------------------------------------------------------------------------------------------


def test_public_code_is_on_the_cpu():
    with OnCPU():
        values = torch.zeros(2, device="cuda")
        assert {values.cuda().device, values.to("cuda:1").device, values.to(torch.device("cuda")).device} == {
            torch.device("cpu")
        }


def test_a_package_can_be_imported_without_what_it_needs(tmp_path, monkeypatch):
    package = tmp_path / "somebodys"
    package.mkdir()
    (package / "__init__.py").write_text("import no_such_package", encoding="utf-8")
    (package / "part.py").write_text("import heavy\nfrom heavy import thing\nanswer = 42\n", encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("somebodys", "somebodys.part", "heavy"):
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    without_init("somebodys", package)
    leave_out("heavy")
    assert imported(tmp_path, "somebodys.part").answer == 42


class Network(torch.nn.Module):
    """A network with the parts that MALMEN's public ones have, by their names."""

    def __init__(self, key_size, value_size, rank, blocks):
        super().__init__()
        self.key_size, self.value_size, size = key_size, value_size, key_size + value_size
        self.normalizer = SimpleNamespace(mean=torch.randn(size), std=torch.rand(size) + 0.5, n=torch.tensor([30.0]))
        self.blocks = torch.nn.ModuleList()
        for _ in range(blocks):
            block = torch.nn.Module()
            for name, shape in (("A", (size, rank)), ("B", (rank, size)), ("bias", (size,))):
                setattr(block, name, torch.nn.Parameter(torch.randn(shape)))
            block.scale, block.shift = torch.nn.Embedding(2, size), torch.nn.Embedding(2, size)
            self.blocks.append(block)
        self.lr, self.lamda = torch.nn.Embedding(2, 1), torch.nn.Embedding(2, 1)
        self.lr.weight.data.abs_()


def test_a_public_network_as_a_policy_computes_the_papers_formula():
    """MALMEN, section 4: the regression of ``-lr (u . u~) d~`` on the keys, here of gradients five times as large."""
    torch.manual_seed(0)
    network, keys, gradients = Network(4, 3, rank=2, blocks=2), torch.randn(6, 4), torch.randn(6, 3)
    policy = malmen_policy({"(4, 3)": network}, ["first", "second"], gradient_scale=5.0)
    deltas = policy({name: Gradient(keys, 5 * gradients) for name in ("first", "second")})
    for i, name in enumerate(("first", "second")):
        x = (torch.cat([keys, gradients], 1) - network.normalizer.mean) / network.normalizer.std
        for block in network.blocks:
            x = x + block.scale.weight[i] * (x @ block.A @ block.B + block.bias).relu() + block.shift.weight[i]
        values = -network.lr.weight[i] * (keys * x[:, :4]).sum(1, keepdim=True) * x[:, 4:]
        regression = keys.T @ keys + network.lamda.weight[i].exp() * torch.eye(4)
        expected = torch.linalg.solve(regression, keys.T @ values)
        torch.testing.assert_close(deltas[name].dense(), expected, rtol=1e-3, atol=1e-4)


def test_gradients_of_a_public_network_have_the_policys_names():
    network = Network(4, 3, rank=2, blocks=2)
    policy = malmen_policy({"(4, 3)": network}, ["first", "second"], gradient_scale=1.0)
    for parameters in (network.parameters(), policy.parameters()):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
    public, ours = public_gradients({"(4, 3)": network}), our_gradients(policy, factor=3.0)
    assert public.keys() == ours.keys()
    assert {name: tuple(value.shape) for name, value in public.items()} == {n: tuple(v.shape) for n, v in ours.items()}
    # The policy has the logarithm of lr, whose gradient is lr times that of lr.
    torch.testing.assert_close(public["log_step_size"], network.lr.weight[:, 0].detach())
    assert all((value == 3).all() for value in ours.values())


def test_layers_that_give_tuples_compute_the_same(tiny):
    texts = labelled(tiny.tokenizer, [("The home of Ada is", "Rome"), ("Who", "Ada Lovelace")])
    texts.pop("labels")
    model = public_model(tiny)
    seen = []
    model.get_submodule("model.layers.1.inner").register_forward_hook(lambda *args: seen.append(type(args[2])))
    with torch.no_grad():
        assert torch.equal(model(**texts).logits, tiny.model()(**texts).logits)
    assert seen == [tuple]


def test_edits_have_answers_of_the_length_asked_for(tiny):
    for edit in tiny.edits(5, answer_tokens=2):
        for answer in (edit.target, edit.locality[0].answer):
            assert len(tiny.tokenizer(f" {answer}")["input_ids"]) == 2


def test_answers_are_labelled_where_they_stand(tiny):
    texts = labelled(tiny.tokenizer, [("The home of Ada is", "Rome"), ("Who", "Ada Lovelace")])
    for row, answer in enumerate((" Rome", " Ada Lovelace")):
        ids, labels = texts["input_ids"][row], texts["labels"][row]
        assert tiny.tokenizer.decode(ids[labels != -100]) == answer
        assert torch.equal(ids[labels != -100], labels[labels != -100])
    assert json.loads(json.dumps(texts["attention_mask"].sum(1).tolist())) == [
        len(tiny.tokenizer(text)["input_ids"]) for text in ("The home of Ada is Rome", "Who Ada Lovelace")
    ]
