"""Problems with right answers: what is written, which side it stands on, what is scored, and what is answered."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from handmade.config import Config
from handmade.errors import ConfigError
from handmade.generation import SamplingConfig, generate, greedy
from handmade.models import GPT, Bigram, BigramConfig, FixedWindow, FixedWindowConfig, GPTConfig
from handmade.optimizers import OptimizerConfig
from handmade.positions import shared_positions
from handmade.tasks import TASKS
from handmade.tasks.arithmetic import reports
from handmade.tasks.arithmetic.expressions import layouts
from handmade.tasks.arithmetic.operations import carries
from handmade.tasks.arithmetic.pictures import attention_picture, attention_rows, solved
from handmade.tasks.arithmetic.problems import distinct, keys, take
from handmade.tasks.arithmetic.strings import HOLE, digit_columns, digit_count, packed
from handmade.training import TrainConfig, Trainer

FEW: dict[str, Any] = {"train_problems": 60, "test_problems": 40}


def make(name: str, **options: Any) -> Any:
    kind = TASKS[name]
    return kind(kind.settings.from_dict({**FEW, **options}))


def problem(task: Any, prompt: str) -> np.ndarray:
    return task.parsed([prompt])


# ---------------------------------------------------------------------------------------------------------------
# What is written


@pytest.mark.parametrize(
    ("name", "options", "prompt", "sentence"),
    [
        ("addition", {}, "12+34=", "12+34=640"),
        ("addition", {}, "5+7", "05+07=210"),
        ("addition", {}, "99+1=", "99+01=001"),
        ("addition", {"reversed": False}, "12+34=", "12+34=046"),
        ("addition", {"padded": False}, "12+34=", "12+34=64"),
        ("addition", {"padded": False, "reversed": False}, "99+1=", "99+1=100"),
        ("addition", {"operators": False}, "12+34=", "1234640"),
        ("addition", {"operators": False}, "1234", "1234640"),
        ("addition", {"operands": 3, "padded": False}, "5+12+7=", "5+12+7=42"),
        ("addition", {"operands": 3}, "99+99+99=", "99+99+99=792"),
        ("addition", {"digits": 4}, "9999+1=", "9999+0001=00001"),
        ("addition", {"hints": True}, "12+34=", "c2d1+c4d3=c6d4e0"),
        ("addition", {"hints": True, "padded": False}, "12+34=", "c2d1+c4d3=c6d4"),
        ("addition", {"hints": True, "padded": False, "reversed": False}, "99+1=", "d9c9+c1=e1d0c0"),
        ("subtraction", {"hints": True}, "12-34=", "c2d1-c4d3=c2d2-"),
        ("addition", {"hints": True, "digits": 3}, "2+34=", "d2e0+d4e3=d6e3f0"),
        ("addition", {"hints": True, "digits": 5}, "2+4=", "b2+b4=b6c0"),
        ("multiplication", {"hints": True, "digits": 3, "lengths": "natural"}, "2*4=", "d2*d4=d8e0"),
        ("addition", {"shared_positions": True}, "12+34=", "a21000+43000=a64000"),
        ("addition", {"shared_positions": True, "padded": False}, "12+34=", "c21+43=c64"),
        ("addition", {"shared_positions": True, "digits": 5}, "2+4=", "b20+40=b60"),
        ("subtraction", {"shared_positions": True}, "12-34=", "a2100-4300=a2200-"),
        ("subtraction", {"reversed": False, "padded": False}, "34-12=", "34-12=22"),
        ("subtraction", {"reversed": False}, "12-34=", "12-34=-22"),
        ("subtraction", {}, "12-34=", "12-34=22-"),
        ("subtraction", {"padded": False}, "0-5=", "0-5=5-"),
        ("multiplication", {"reversed": False, "padded": False}, "12*34=", "12*34=408"),
        ("multiplication", {}, "12*34=", "12*34=8040"),
        ("modular", {}, "50+60=", "50+60=13"),
        ("modular", {"modulus": 11, "padded": False}, "4+7=", "4+7=0"),
        ("expression", {}, "(3+4)*5=", "(3+4)*5=35"),
        ("expression", {}, "3+4*5=", "3+4*5=23"),
        ("expression", {"steps": True}, "(3+4)*5=", "(3+4)*5=7*5=35"),
        ("expression", {"steps": True}, "2*(3+4*5)=", "2*(3+4*5)=2*(3+20)=2*23=46"),
        ("expression", {"steps": True}, "9*9=", "9*9=81"),
        ("expression", {"operands": 4}, "((1+2)*3)+4", "((1+2)*3)+4=13"),
        ("sort", {}, "31415=", "31415=11345"),
        ("sort", {}, "907", "907=079"),
        ("reverse", {}, "31415=", "31415=51413"),
        ("copy", {}, "0=", "0=0"),
        ("parity", {}, "10110=", "10110=1"),
        ("parity", {}, "11", "11=0"),
    ],
)
def test_worked_strings(name, options, prompt, sentence):
    task = make(name, **options)
    assert task.sentence(problem(task, prompt)) == sentence


def value(name: str, question: str, task: Any) -> str:
    """The right answer, worked out by Python from what a person reads."""
    text = question.removesuffix("=")
    if name == "sort":
        return "".join(sorted(text))
    if name == "reverse":
        return text[::-1]
    if name == "copy":
        return text
    if name == "parity":
        return str(text.count("1") % 2)
    text = re.sub(r"\b0+(?=\d)", "", text)  # to Python a number does not begin with 0
    result = eval(text)
    return str(result % task.config.modulus if name == "modular" else result)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("addition", {"digits": 3}),
        ("addition", {"digits": 12, "operands": 3, "padded": False, "reversed": False, "lengths": "even"}),
        ("addition", {"hints": True, "padded": False, "digits": 10}),
        ("addition", {"shared_positions": True, "digits": 10, "operands": 3}),
        ("multiplication", {"shared_positions": True, "padded": False}),
        ("subtraction", {}),
        ("subtraction", {"digits": 5, "padded": False, "reversed": False}),
        ("multiplication", {"digits": 9}),
        ("multiplication", {"padded": False}),
        ("modular", {}),
        ("expression", {}),
        ("expression", {"operands": 6, "steps": True, "lengths": "even"}),
        ("expression", {"parentheses": False, "operands": 4}),
        ("sort", {}),
        ("reverse", {"length": 20, "lengths": "even"}),
        ("copy", {"length": 3, "shortest": 2}),
        ("parity", {}),
    ],
)
def test_right_answers_are_pythons(name, options):
    task = make(name, **options)
    problems = np.concatenate([task.split.train, task.split.test])
    for question, answer in zip(task.asked(problems), task.written(problems), strict=True):
        question = re.sub("[a-zA-Z]", "", question)  # without what turns numbers round
        if options.get("hints") or options.get("shared_positions"):
            question = re.sub("[0-9]+", lambda number: number[0][::-1], question)
        assert task.shown(answer) == value(name, question, task), question
        assert task.right_answers([question]) == [task.shown(answer)]  # the same from what a person types


def test_steps_are_equal_to_each_other():
    """Every expression that is written on the way has the value of the first, and one operation less."""
    task = make("expression", operands=5, steps=True)
    for question, answer in zip(task.asked(task.split.test), task.written(task.split.test), strict=True):
        parts = (question + answer).split("=")
        assert {eval(part) for part in parts} == {int(parts[-1])}
        counts = [len(re.findall("[+*]", part)) for part in parts]
        assert counts == list(range(len(counts) - 1, -1, -1))


def test_layouts_are_all_that_there_are():
    """Their numbers are known (the little Schroeder numbers), and no two are alike."""
    assert [len(set(layouts(count))) for count in (2, 3, 4, 5, 6)] == [1, 3, 11, 45, 197]
    assert all(len(layouts(count)) == len(set(layouts(count))) for count in (4, 5))
    assert layouts(4)[0] == "d?d?d?d"


def test_hints_are_the_same_for_digits_of_the_same_worth():
    """In longer numbers too, with the letters that there are; and all letters are used in training."""
    task = make("addition", hints=True, padded=False, digits=3, train_problems=400)
    trained = task.split.train
    used = set("".join(task.asked(trained) + task.written(trained))) & set("abcdefghijklmnop")
    assert used == set(task.tokenizer.characters) & set("abcdefghijklmnop")
    longest = list(task.longer())[-1]
    for question, answer in [
        *zip(task.asked(task.split.test), task.written(task.split.test), strict=True),
        *zip(longest[1].asked(longest[2]), longest[1].written(longest[2]), strict=True),
    ]:
        numbers = [re.findall("([a-z])([0-9])", part) for part in re.split(r"[+=]", question + answer)]
        ones = {number[0][0] for number in numbers}
        assert len(ones) == 1
        lowest = ord(ones.pop())
        worth = {chr(lowest + place): 10**place for place in range(8)}
        first, second, total = (sum(worth[letter] * int(digit) for letter, digit in number) for number in numbers)
        assert first + second == total
    with pytest.raises(ConfigError, match="the 7 letters of its rows are too few for so long numbers"):
        task.right_answers(["1234567+1="])


def test_digits_of_the_same_worth_share_a_position():
    """In longer numbers too, with the origins that there are; and all origins are used in training."""
    task = make("addition", shared_positions=True, digits=3, train_problems=400)
    model = task.choose("gpt", 60.0, torch.device("cpu"), {}).tables["model"]
    digits, origins = model["digit_tokens"], model["origin_token"]
    assert task.tokenizer.decode(list(range(digits[0], digits[1] + 1))) == "0123456789"
    assert task.tokenizer.decode(list(range(origins, task.tokenizer.vocab_size))) == "abcdefg"
    reached = set()
    longest = list(task.longer())[-1]
    for problems, writer in ((task.split.train, task), (longest[2], longest[1])):
        for question, answer in zip(writer.asked(problems), writer.written(problems), strict=True):
            row = torch.from_numpy(task.tokenizer.encode(question + answer).astype(np.int64))[None]
            ((places,), _) = shared_positions(row, digits, origins)
            worth = [10.0 ** (int(place) - (ord(question[0]) - ord("a")) - 1) for place in places]
            values = [[]]
            for character, one in zip(question + answer, worth, strict=True):
                if character in "+=":
                    values.append([])
                elif character.isdigit():
                    values[-1].append(one * int(character))
            first, second, total = map(sum, values)
            assert first + second == total, question
            if writer is task:
                reached |= set(places.tolist())
            else:
                assert set(places.tolist()) <= reached  # no position is new
    assert model["context"] == 1 + 3 * 7 + 2 + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hints": True}, "shared_positions = True: must be false with hints"),
        ({"operators": False}, "operators = False: must be true with shared positions"),
        ({"reversed": False}, "reversed = False: must be true with shared positions"),
    ],
)
def test_shared_positions_need_what_they_are_counted_from(options, message):
    with pytest.raises(ConfigError, match=message):
        make("addition", shared_positions=True, **options)


def test_what_is_chosen_for_a_problem_says_nothing_about_it():
    """Not whether a number is even, which the last bits of `keys` say."""
    task = make("addition")
    problems = task.enumerate()
    odd = problems[:, 0] % 2 == 1
    assert np.array_equal(keys(problems) % 2, problems.sum(1) % 2)
    for salt in (0, 1):
        picked = task.chosen(problems, np.full(len(problems), 7), salt)
        for some in (odd, ~odd, problems.sum(1) % 2 == 1, problems.sum(1) > 99):
            counts = np.bincount(picked[some], minlength=8)
            assert counts.min() > 0.8 * counts.mean()  # four deviations
    assert not np.array_equal(task.chosen(problems, np.full(len(problems), 7)), picked)


def test_digits_and_holes():
    columns = digit_columns(np.array([0, 7, 305]), 3, 10, least=1)
    assert columns.tolist() == [[HOLE, HOLE, 10], [HOLE, HOLE, 17], [13, 10, 15]]
    rows, lengths = packed(columns)
    assert rows.tolist() == [[10, 0, 0], [17, 0, 0], [13, 10, 15]]
    assert lengths.tolist() == [1, 1, 3]
    assert digit_columns(np.empty(0, np.int64), 3, 10, least=np.empty(0, np.int64)).shape == (0, 3)
    assert digit_columns(np.array([7]), 3, 10, least=3).tolist() == [[10, 10, 17]]
    some = digit_columns(np.array([7, 7, 0, 305]), 3, 10, least=np.array([1, 2, 3, 1]))
    assert some.tolist() == [[HOLE, HOLE, 17], [HOLE, 10, 17], [10, 10, 10], [13, 10, 15]]
    assert digit_count(np.array([0, 9, 10, 10**17])).tolist() == [1, 1, 2, 18]


# ---------------------------------------------------------------------------------------------------------------
# Which side


CASES = [
    ("addition", {}),
    ("addition", {"twins": "together"}),
    ("addition", {"digits": 8, "train_problems": 3000, "test_problems": 1000, "twins": "together"}),
    ("addition", {"digits": 1, "padded": False}),
    ("multiplication", {"twins": "together"}),
    ("subtraction", {"digits": 6}),
    ("modular", {"twins": "together"}),
    ("expression", {}),
    ("expression", {"operands": 6}),
    ("sort", {}),
    ("copy", {"length": 40}),
    ("parity", {"length": 7}),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_no_problem_is_on_both_sides(name, options):
    task = make(name, **options)
    trained, tested = set(task.asked(task.split.train)), set(task.asked(task.split.test))
    assert len(trained) == task.config.train_problems == len(task.train)
    assert len(tested) == task.config.test_problems == len(task.test)
    assert not trained & tested
    if getattr(task.config, "twins", "apart") == "together":
        twins = {task.sign.join(reversed(question.removesuffix("=").split(task.sign))) + "=" for question in trained}
        assert not twins & tested


def test_twins_apart_are_on_both_sides():
    """The published setting: each of a pair for itself."""
    task = make("addition", train_problems=2500, test_problems=7500)
    trained = {tuple(pair) for pair in task.split.train.tolist()}
    found = sum((b, a) in trained for a, b in task.split.test.tolist())
    assert found > 1000


def test_the_whole_is_divided():
    """Two digits: all 10,000 sums are on one side or the other, a quarter to train on."""
    task = TASKS["addition"]()
    assert (len(task.train), len(task.test)) == (2500, 7500)
    every = {tuple(pair) for pair in np.concatenate([task.split.train, task.split.test]).tolist()}
    assert every == {(a, b) for a in range(100) for b in range(100)}
    together = make("addition", twins="together", train_problems=None, test_problems=None)
    assert len(together.train) == 2500
    assert len(together.test) >= 7498


def test_the_seed_decides_the_sides_and_nothing_else_does():
    first, again, other = make("addition"), make("addition"), make("addition", seed=1)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert first.fingerprint() != make("addition", reversed=False).fingerprint()


def test_every_length_is_as_likely_where_that_is_asked_for():
    task = make("addition", digits=10, lengths="even", train_problems=5000, test_problems=10)
    counts = np.bincount(digit_count(task.split.train.max(1)), minlength=11)[1:]
    assert counts[0] <= 100  # there are no more sums of single digits
    assert counts[2:].min() > 400
    hinted = make("addition", digits=10, hints=True, train_problems=5000, test_problems=10)
    counts = np.bincount(digit_count(hinted.split.train.max(1)), minlength=11)[1:]
    assert counts[2:].min() > 400
    gaps = digit_count(hinted.split.train[:, 0]) - digit_count(hinted.split.train[:, 1])
    assert min((gaps >= 3).mean(), (gaps <= -3).mean()) > 0.08  # one in a thousand where all numbers are as likely
    assert (gaps == 0).mean() > 0.4
    short = make("reverse", length=3, lengths="even", train_problems=25, test_problems=None)
    counts = np.bincount((short.split.train >= 0).sum(1), minlength=4)[1:]
    assert counts.min() >= 3  # of ten, a hundred, a thousand sequences
    assert len(short.test) == 25
    natural = make("addition", digits=10, train_problems=5000, test_problems=10)
    assert (digit_count(natural.split.train.max(1)) == 10).mean() > 0.98


def test_drawing_distinct_problems():
    random = np.random.default_rng(0)
    found = distinct(lambda count: random.integers(0, 10, (count, 2)), 100)
    assert {tuple(row) for row in found.tolist()} == {(a, b) for a in range(10) for b in range(10)}
    assert len(distinct(lambda count: random.integers(0, 2, (count, 2)), 9)) == 4
    assert len(np.unique(keys(np.array([[1, 2], [2, 1], [1, 2], [-1, 0]])))) == 3


def test_too_many_problems():
    with pytest.raises(ConfigError, match=r"9,999 problems to train on and 40 .* too many: there are 10,000"):
        make("addition", train_problems=9999)
    with pytest.raises(ConfigError, match="were found"):
        take(np.zeros((3, 1)), None, 3, 1, np.random.default_rng(0), "3 were found")


# ---------------------------------------------------------------------------------------------------------------
# What is scored


@pytest.mark.parametrize("name", TASKS)
def test_only_the_answer_is_scored(name):
    task = make(name)
    batch = task.batch(30, torch.Generator().manual_seed(0))
    assert batch.inputs.dtype == batch.targets.dtype == torch.int64
    assert batch.inputs.shape == batch.targets.shape == (30, task.train.inputs.shape[1])
    for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
        scored = targets != -100
        first = int(scored.int().argmax())
        question = task.tokenizer.decode(inputs[: first + 1])
        answer = task.tokenizer.decode(targets[scored])
        assert question[-1] == "="
        assert answer == task.written(problem(task, question))[0] + "\n"
        assert scored[first : first + len(answer)].all()
        assert torch.equal(inputs[1:][scored[:-1]], targets[:-1][scored[:-1]])  # a target is the next input


def test_batches_follow_from_the_generator():
    task = make("sort")
    one, other = (task.batch(8, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.inputs, other.inputs)
    before = torch.get_rng_state()
    task.batch(8, torch.Generator().manual_seed(3))
    assert torch.equal(before, torch.get_rng_state())


def small_model(task: Any, **shape: Any) -> GPT:
    shape = {"layers": 1, "heads": 2, "width": 32, "context": task.context, "tied_head": False, **shape}
    return GPT(GPTConfig(task.tokenizer.vocab_size, **shape), torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def halfway() -> tuple[Any, GPT]:
    """A model that has learnt to turn short sequences round, more or less."""
    task = make("reverse", length=3, train_problems=600, test_problems=300)
    config = TrainConfig(steps=60, batch=64, precision="float32", evaluate_every=None, seed=1)
    trainer = Trainer(small_model(task), task, config, OptimizerConfig(learning_rate=8e-3))
    trainer.train(progress=False)
    return task, trainer.model.eval()


def test_one_pass_tells_what_decoding_tells(halfway):
    """Exactly right by the likeliest token at each place of the right answer, and by greedy decoding: the same
    problems, of a model that gets some right and some wrong."""
    task, model = halfway
    answers, right = task.decoded(model, task.split.test), task.written(task.split.test)
    decoded = [answer == solution for answer, solution in zip(answers, right, strict=True)]
    assert 0.15 < np.mean(decoded) < 0.999
    for start in range(0, len(decoded), 100):
        with torch.inference_mode():
            found = task.passed(model, task.test[start : start + 100], torch.device("cpu"))["exact"]
        assert found == pytest.approx(np.mean(decoded[start : start + 100]), abs=1e-9)
    # Row by row, by hand.
    logits = model(task.test.inputs.long())
    targets = task.test.targets.long()
    rows = ((logits.argmax(-1) == targets) | (targets == -100)).all(1)
    assert rows.tolist() == decoded


def test_the_score(halfway):
    task, model = halfway
    with torch.inference_mode():
        scores = task.score(model, torch.device("cpu"))
        trained = task.passed(model, task.train, torch.device("cpu"))["exact"]
    inputs, targets = task.test.inputs.long(), task.test.targets.long()
    logits = model(inputs)
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert scores["val_loss"] == pytest.approx(loss.item(), rel=1e-5)
    scored = targets != -100
    assert scores["token_accuracy"] == pytest.approx(float((logits.argmax(-1) == targets)[scored].float().mean()))
    assert scores["exact_match"] <= scores["token_accuracy"]
    assert scores["train_exact_match"] == trained
    assert sum(batch.inputs.numel() for batch in task.walk()) == task.positions


def test_many_rows_are_decoded_as_one_by_one(halfway):
    """`greedy` against the sampler at temperature 0, and against the model without a cache."""
    _, model = halfway
    prompts = torch.randint(2, 13, (40, 4), generator=torch.Generator().manual_seed(0))
    found = greedy(model, prompts, 3)
    assert found.tolist() == generate(model, prompts.tolist(), 3, SamplingConfig(temperature=0))
    rows = prompts
    for _ in range(3):
        rows = torch.cat([rows, model(rows)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(found, rows[:, 4:])
    ended = greedy(model, prompts, 3, end=1)
    for row, whole in zip(ended.tolist(), found.tolist(), strict=True):
        end = whole.index(1) if 1 in whole else 3
        assert row[: end + 1] == whole[: end + 1]
        assert set(row[end + 1 :]) <= {1}
    with pytest.raises(ConfigError, match="4 tokens and 9 more do not fit the context of 7"):
        greedy(model, prompts, 9)


def test_it_learns(halfway):
    task, model = halfway
    with torch.inference_mode():
        scores = task.score(model, torch.device("cpu"))
    assert scores["exact_match"] > 0.15  # by chance it is a thousandth
    assert scores["val_loss"] < 1.5


# ---------------------------------------------------------------------------------------------------------------
# Answers


class Knowing(torch.nn.Module):
    """A model that knows the right answer to every problem of a task, and how to be wrong."""

    context = None

    def __init__(self, task: Any, wrong: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.task, self.config = task, GPTConfig(task.tokenizer.vocab_size)
        problems = np.concatenate([task.split.train, task.split.test])
        self.lines = [q + a + "\n" for q, a in zip(task.asked(problems), task.written(problems), strict=True)]
        self.lines += [line.removesuffix("\n") + "1\n" for line in wrong]

    def new_cache(self, rows: int) -> Any:
        return {"rows": [""] * rows}

    def forward(self, tokens: torch.Tensor, cache: Any = None, starts: Any = None) -> torch.Tensor:
        logits = torch.zeros(*tokens.shape, self.config.vocab_size)
        for row, new in enumerate(tokens):
            before = cache["rows"][row] if cache else ""
            text = before + self.task.tokenizer.decode(new)
            for place in range(len(new)):
                so_far = text[: len(before) + place + 1]
                nexts = [line[len(so_far)] for line in self.lines if line.startswith(so_far) and line != so_far]
                if nexts:
                    logits[row, place, int(self.task.tokenizer.encode(nexts[0])[0])] = 1.0
            if cache:
                cache["rows"][row] = text
        return logits


def test_answers_are_as_a_person_reads_them():
    task = make("addition", digits=1, train_problems=60, test_problems=40)
    model = Knowing(task)
    assert task.answers(model, ["7+5=", "9 + 9", "0+0="]) == ["12", "18", "0"]
    assert task.answer(model, "3+4=") == "7"
    assert task.answers(model, []) == []
    unpadded = make("subtraction", digits=1, padded=False)
    assert unpadded.answers(Knowing(unpadded), ["3-7=", "7-3="]) == ["-4", "4"]


def test_the_report():
    task = make("addition", digits=1, padded=False, reversed=False, train_problems=60, test_problems=40)
    model = Knowing(task)
    scores = task.evaluate(model)
    assert (scores["exact_match"], scores["train_exact_match"], scores["wrong"]) == (1.0, 1.0, [])
    assert scores["problems"] == 40

    broken = task.asked(task.split.test[:1])[0]
    right = task.written(task.split.test[:1])[0]
    model.lines = [line for line in model.lines if not line.startswith(broken)] + [f"{broken}{right}1\n"]
    scores = task.evaluate(model)
    assert scores["exact_match"] == 39 / 40
    assert scores["wrong"] == [{"problem": broken, "answer": f"{right}1", "right": right}]
    for groups in scores["errors"].values():
        assert sum(group["problems"] for group in groups.values()) == 40
        assert sum(group["right"] for group in groups.values()) == 39
    assert [row["length"] for row in scores["longer"]] == ["2 digits"]
    told = dict(task.tell({**scores, "precision": "float32"}))
    assert told["right"].startswith("97.50 % of 40 problems never seen, whole answers; 1 wrong")
    assert f"{broken}{right}1   it is {right}" in told["wrong answers"]


@pytest.mark.parametrize("options", [{}, {"hints": True}, {"hints": True, "padded": False}, {"shared_positions": True}])
def test_the_report_where_nothing_is_wrong(options):
    """However sums are written: tables of no problems can be made too."""
    task = make("addition", digits=2, **options)
    scores = reports.examined(task, Knowing(task), most=30)
    assert (scores["exact_match"], scores["wrong"], scores["problems"]) == (1.0, [], 30)
    assert task.asked(task.split.test[:0]) == task.written(task.split.test[:0]) == []


def test_longer_problems_that_do_not_fit_are_said():
    task = make("addition")
    with torch.inference_mode():
        scores = task.evaluate(small_model(task))
    assert [row["exact_match"] for row in scores["longer"]] == [None, None]
    told = dict(task.tell({**scores, "precision": "float32"}))["longer ones"].splitlines()
    assert told[1] == "4 digits    do not fit the model's context: train with --set model.context=15 to ask them"
    with torch.inference_mode():
        roomy = task.evaluate(small_model(task, context=15))  # what was said is enough, and no more than that
        short = task.evaluate(small_model(task, context=14))
    assert all(0 <= row["exact_match"] <= 1 for row in roomy["longer"])
    assert [row["exact_match"] is None for row in short["longer"]] == [False, True]


def test_hints_have_room_for_longer_problems():
    """The settings that hints bring: a model that holds sums of twice the digits, with no position of its own."""
    task = make("addition", digits=3, hints=True)
    tables = task.choose("gpt", 60.0, torch.device("cpu"), {"model": {"layers": 1, "width": 16}}).tables["model"]
    assert (tables["positions"], tables["pair_embedding"], tables["width"] % tables["heads"]) == ("none", True, 0)
    assert tables["context"] == len("a1b2c3d4e5f6+a1b2c3d4e5f6=a1b2c3d4e5f6g7")
    shape = GPTConfig.from_dict({**tables, "layers": 1, "width": 16, "vocab_size": task.tokenizer.vocab_size})
    with torch.inference_mode():
        longer = task.evaluate(GPT(shape).eval())["longer"]
    assert [(row["length"], row["exact_match"]) for row in longer] == [(f"{k} digits", 0.0) for k in (4, 5, 6)]
    assert make("addition").choose("gpt", 60.0, torch.device("cpu"), {}).tables["model"]["positions"] == "learned"


def test_batches_of_even_lengths():
    """From short to long: in a batch all are of more than half the length of the longest, and none is wider."""
    task = make("reverse", length=6, lengths="even", train_problems=500)
    generator, most = torch.Generator().manual_seed(0), []
    for _ in range(300):
        batch = task.batch(32, generator)
        sizes = (batch.inputs >= 2).sum(1) // 2  # question, equals sign, answer
        assert sizes.max() <= 2 * sizes.min()
        assert batch.inputs.shape[1] == int((batch.inputs != 0).sum(1).max())
        assert int((batch.targets != -100).sum()) == int(sizes.sum()) + 32
        most.append(int(sizes.max()))
    counts = np.bincount(most, minlength=7)[1:]
    assert counts.min() > 15
    assert counts[0] > counts[5]


def test_right_of_the_problems_that_picked_no_weights(monkeypatch):
    """The first test problems pick the weights that are kept; what is right of the others is said by itself."""
    task = make("addition", digits=1, padded=False, reversed=False)
    model = Knowing(task)
    assert task.evaluate(model)["held_out"] is None
    monkeypatch.setattr("handmade.tasks.arithmetic.task.SCORED_WHILE_TRAINING", 30)
    broken = task.asked(task.split.test[[3, 35]])
    model.lines = [line for line in model.lines if not line.startswith(tuple(broken))]
    scores = task.evaluate(model)
    assert scores["exact_match"] == 38 / 40
    assert scores["held_out"] == {"problems": 10, "exact_match": 0.9}
    assert ("", "90.00 % of the 10 that were not looked at in training") in task.tell(
        {**scores, "precision": "float32"}
    )


@pytest.mark.parametrize("prompt", ["31415=", "7="])
def test_where_it_looks(prompt):
    """A line for each token of the answer, that sums to 1 and has nothing of what comes later."""
    task = make("copy")
    model = small_model(task, layers=2)
    layers = attention_rows(task, model, problem(task, prompt))
    length = len(prompt)
    assert len(layers) == 2
    for weights in layers:
        assert weights.shape == (2, length, 2 * length - 1)  # heads, the answer and its end, the row without its end
        np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
        for place in range(length):
            assert not weights[:, place, length + place :].any()
    window = FixedWindow(FixedWindowConfig(task.tokenizer.vocab_size, width=8, heads=2, layers=1, hidden=8)).eval()
    (weights,) = attention_rows(task, window, problem(task, prompt))
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert not weights[:, 0, length:].any()
    assert attention_rows(task, Bigram(BigramConfig(task.tokenizer.vocab_size)), problem(task, prompt)) == []


def test_a_solved_problem_is_shown_a_hard_one():
    task = make("addition", digits=1, padded=False)
    chosen = solved(task, Knowing(task))
    assert carries(chosen).tolist() == [1]
    model = small_model(task)
    figure = attention_picture(task, model)
    assert len(figure.axes) == 2
    (shown,) = solved(task, model)  # it has learnt nothing, and solves none
    assert task.decoded(model, shown[None]) != task.written(shown[None])
    assert "looks; not solved: the model writes " in figure.get_suptitle()


def test_a_picture_of_a_long_problem_is_no_ribbon():
    """Its heads stand under each other, none is left out, and no axes are empty."""
    for digits in (2, 8):
        task = make("addition", digits=digits, shared_positions=True)
        tables = task.choose("gpt", 60.0, torch.device("cpu"), {}).tables["model"]
        model = GPT(GPTConfig.from_dict({**tables, "vocab_size": task.tokenizer.vocab_size})).eval()
        figure = attention_picture(task, model)
        assert [axes.get_title() for axes in figure.axes] == [f"layer 1, head {head}" for head in (1, 2, 3, 4)]
        wide, high = figure.get_size_inches()
        assert wide < max(18, 20 * high)
        assert len({axes.get_subplotspec().rowspan.start for axes in figure.axes}) == {2: 2, 8: 4}[digits]


def test_a_picture_of_a_solved_problem_says_nothing_else(halfway):
    task, model = halfway
    chosen = solved(task, model)
    assert task.decoded(model, chosen) == task.written(chosen)
    figure = attention_picture(task, model)
    assert figure.get_suptitle() == f"{task.sentence(chosen)}   where each token of the answer looks"


@pytest.mark.parametrize(
    ("name", "prompt", "message"),
    [
        ("addition", "37-45=", r"'37-45=' is no problem of addition. One looks like this: \d+\+\d+="),
        ("addition", "37+=", "is no problem of addition"),
        ("addition", "1+2+3=", "is no problem of addition"),
        ("addition", "", "is no problem of addition"),
        ("addition", f"{10**17}+1=", "holds numbers of up to 17 digits"),
        ("modular", "97+1=", "modular 97: its numbers are smaller than that"),
        ("expression", "(3+4=", "is no problem of expression"),
        ("expression", "12+3=", "is no problem of expression"),
        ("expression", "3=", "is no problem of expression"),
        ("sort", "a=", "is no problem of sort"),
        ("parity", "102=", "is no problem of parity. One looks like this: [01]+="),
    ],
)
def test_prompts_that_are_no_problems(name, prompt, message):
    task = make(name)
    with pytest.raises(ConfigError, match=message):
        task.answers(Knowing(task), [prompt])


def test_a_problem_that_the_context_does_not_hold():
    task = make("addition")
    message = r"123\+004=: with its answer 12 tokens, and the model's context holds 9. Ask .* --set model.context=12"
    with pytest.raises(ConfigError, match=message):
        task.answers(small_model(task), ["123+4="])
    assert len(task.answers(small_model(task, context=12), ["123+4="])) == 1
    with pytest.raises(ConfigError, match=r"model.context = 8: too short. A row of addition has up to 9 tokens"):
        task.fitted(8, print)
    assert task.fitted(30, print) == (task, 30)
    assert task.fitted(None, print) == (task, 9)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("addition", {"digits": 0}, "digits = 0: must be from 1 to 17"),
        ("addition", {"digits": 18}, "an answer has to fit 64 bits"),
        ("multiplication", {"digits": 10}, "from 1 to 9"),
        ("addition", {"operands": 1}, "operands = 1: must be from 2 to 9"),
        ("addition", {"operators": False, "padded": False}, "padded = False: must be true without operators"),
        ("addition", {"twins": "apart?"}, "one of apart, together"),
        ("expression", {"operands": 7}, "from 2 to 6"),
        ("expression", {"shortest": 4}, "from 2 to operands = 3"),
        ("sort", {"length": 0}, "from 1 to 100"),
        ("modular", {"modulus": 1}, "from 2 to 10,000"),
        ("addition", {"test_problems": 0}, "from 1 to 10,000,000, or none"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        make(name, **options)


def test_carries():
    sums = np.array([[12, 34], [15, 27], [99, 1], [55, 55], [0, 0], [10**16 - 1, 1]])
    assert carries(sums).tolist() == [0, 1, 2, 2, 0, 16]
    assert carries(np.array([[99, 99, 99]])).tolist() == [2]


def test_so_many_problems_that_nobody_counts_them():
    ((_, told), *_) = make("sort", length=100).describe()
    assert told == "about 10^100 problems, 60 to train on, 40 others to test with; split by problem"
    ((_, told), *_) = make("addition", digits=7).describe()
    assert told.startswith("100,000,000,000,000 problems")


@pytest.mark.parametrize("name", TASKS)
def test_what_every_task_says_of_itself(name):
    task = make(name)
    assert task.name == name
    assert issubclass(task.settings, Config)
    lines = list(task.describe())
    assert "60 to train on, 40 others to test with" in lines[0][1]
    assert task.right_answers([task.example])
    choice = task.choose("gpt", 60.0, torch.device("cpu"), {})
    shape = GPTConfig(task.tokenizer.vocab_size, **choice.tables["model"])
    assert shape.context >= task.context
    groups = task.groups(task.split.test)
    assert groups
    for group, names in groups.values():
        assert len(group) == 40
        assert 0 <= group.min() <= group.max() < len(names)
    assert task.refusal("counting").startswith("a counting model counts a text")
    assert task.refusal("seq2seq").startswith("takes pairs of sentences")
    assert re.search(r"^ {4}\S+=\S", inspect.getdoc(type(task)) or "", re.MULTILINE), "worked strings"
