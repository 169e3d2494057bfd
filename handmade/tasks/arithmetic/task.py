"""What all tasks with problems and right answers have in common: rows, batches, the loss, the score, answers.

A task is a class that says what its problems are, how they are written, and how a person's prompt is read
(`ArithmeticTask`, the methods under "what a task says"); all else is here.

N problems, B rows of a batch, L tokens of the longest row, T = L - 1 of its inputs, V vocabulary.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from handmade.errors import ConfigError
from handmade.generation import greedy
from handmade.layers import cross_entropy
from handmade.models import ENCODER_DECODERS, FAMILIES
from handmade.tasks.arithmetic import pictures, reports
from handmade.tasks.arithmetic.problems import ProblemConfig, Split, distinct, take
from handmade.tasks.arithmetic.recipes import suggested
from handmade.tasks.arithmetic.rows import IGNORED, Rows
from handmade.tasks.arithmetic.strings import END, END_ID, PAD, packed
from handmade.tasks.base import PAIRS_ONLY, Batch, Choice, GeneratedTask, Say, Tables, in_columns
from handmade.tokenizers import CharTokenizer

ENUMERATED = 2_000_000  # problems that are all written down before some are drawn; of more, some are drawn at once
TEST_AT_MOST = 50_000  # problems, where a person does not say
TEST_EVEN = 10_000  # the same where problems are drawn by length, and as many as are trained on would be asked
SCORED_WHILE_TRAINING = 2_000  # test problems; `evaluate` takes all
CLOSING_PROBLEMS = 10_000  # that are answered when training is over
TRAIN_SCORED = 1_000  # training problems that are scored too, to tell learning by heart from learning
DECODED_AT_ONCE = 2_048  # rows


class ArithmeticTask(GeneratedTask):
    """Answer problems that have one right answer.

    A row is a question, its answer and an end, as the model reads them from left to right. Only the answer and the
    end are scored: a question cannot be foreseen.
    """

    settings: ClassVar[type[ProblemConfig]] = ProblemConfig
    family = "gpt"
    minutes: ClassVar[float] = 1.0
    patience: ClassVar[int | None] = None  # what is learnt by heart first may be understood later
    closing_share = 0.0
    continues = False

    characters: ClassVar[str]
    """The vocabulary, after padding and end."""
    part: ClassVar[float] = 0.25
    """Of all problems, to train on; at most `most_train`."""
    most_train: ClassVar[int] = 10_000
    shape: ClassVar[dict[str, Any]] = {"layers": 2, "heads": 4, "width": 64}
    """Of the GPT that learns it in seconds."""

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.settings() if config is None else config
        self.tokenizer = CharTokenizer(PAD + END + self.vocabulary())
        self.split = self._split()
        self.train, self.test = self.rows(self.split.train), self.rows(self.split.test)
        self.seen = self.train[:TRAIN_SCORED]

    # ----------------------------------------------------------------------------------------------------------
    # What a task says

    def vocabulary(self) -> str:
        """Its characters, without padding and end."""
        return self.characters

    def count(self) -> int:
        """How many problems there are."""
        raise NotImplementedError

    def enumerate(self) -> np.ndarray:
        """All problems. Shapes: -> (N, columns), distinct rows of whole numbers."""
        raise NotImplementedError

    def draw(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Problems, with repetition. Shapes: -> (count, columns)."""
        raise NotImplementedError

    @property
    def even(self) -> bool:
        """Whether problems are drawn so that every length is as likely."""
        return getattr(self.config, "lengths", "natural") == "even"

    def kin(self, problems: np.ndarray) -> np.ndarray | None:
        """Equal rows for problems that have to be on one side. None: each stands by itself."""
        return None

    def questions(self, problems: np.ndarray) -> np.ndarray:
        """Shapes: (N, columns) -> (N, L) tokens, with holes."""
        raise NotImplementedError

    def solutions(self, problems: np.ndarray) -> np.ndarray:
        """The right answers, as the model writes them. Shapes: (N, columns) -> (N, L) tokens, with holes."""
        raise NotImplementedError

    def parse(self, prompt: str) -> list[int]:
        """The problem that a person means. Raises ConfigError where it is none."""
        raise NotImplementedError

    def shown(self, written: str) -> str:
        """What the model wrote, as a person reads it."""
        return written

    def groups(self, problems: np.ndarray) -> dict[str, tuple[np.ndarray, list[str]]]:
        """Kinds of problems, to see which are hard: title -> (the group of each problem, the groups' names)."""
        raise NotImplementedError

    def sizes_of(self, problems: np.ndarray) -> np.ndarray:
        """How long each problem is, of which every one is as likely where lengths are even. Shapes: -> (N,)."""
        raise NotImplementedError

    def longer(self) -> Iterator[tuple[str, ArithmeticTask, np.ndarray]]:
        """Problems longer than any that was trained on: name, a task that writes them, the problems."""
        return iter(())

    # ----------------------------------------------------------------------------------------------------------
    # Problems and rows

    def _split(self) -> Split:
        config: ProblemConfig = self.config
        random, total, spare = np.random.default_rng(config.seed), self.count(), self.kin_spare()
        train = config.train_problems or max(1, min(self.most(), int(self.part * total)))
        # Drawn by length, as many as are trained on: all that are left would not be even.
        test = config.test_problems or max(
            1, min(TEST_EVEN, train) if self.even else min(TEST_AT_MOST, total - train - spare)
        )
        if total <= ENUMERATED and not self.even:
            problems, most = self.enumerate(), f"there are {total:,}"
        else:
            problems = distinct(lambda count: self.draw(count, random), train + test + spare)
            most = f"{len(problems):,} were found"
            if config.test_problems is None:
                test = max(1, min(test, len(problems) - train - spare))
        return take(problems, self.kin(problems), train, test, random, most)

    def most(self) -> int:
        """Problems to train on, at most."""
        return self.most_train

    def kin_spare(self) -> int:
        """Problems that may be lost at the border between the sides."""
        return 0

    def rows(self, problems: np.ndarray) -> Rows:
        """Problems as the model is trained on them."""
        return Rows.of(self.questions(problems), self.solutions(problems))

    @functools.cached_property
    def context(self) -> int:
        """Tokens of the longest row, without its last, which is only told."""
        return max(self.train.inputs.shape[1], self.test.inputs.shape[1])

    @property
    def room(self) -> int:
        """Tokens that a new model should hold."""
        return self.context

    def fingerprint(self) -> str:
        """sha256 over both sides, as they are written."""
        digest = hashlib.sha256()
        for rows in (self.train, self.test):
            digest.update(repr(rows.inputs.shape).encode())
            digest.update(rows.inputs.numpy().tobytes())
            digest.update(rows.targets.numpy().tobytes())
        return digest.hexdigest()

    # ----------------------------------------------------------------------------------------------------------
    # What the trainer asks for

    def batch(self, rows: int, generator: torch.Generator) -> Batch:
        """`rows` training problems, with repetition. Each is as likely as any other; where lengths are even, the
        longest of a batch is drawn first, a short one rather than a long one, and the others are of more than half its
        length: what is short has to be learnt first, and costs less. Shapes: (rows, T) each."""
        if not self.even:
            return self.train.batch(torch.randint(len(self.train), (rows,), generator=generator))
        order, ends = self.by_size
        most = 1 + int((len(ends) - 1) * float(torch.rand(1, generator=generator, dtype=torch.float64)) ** 1.5)
        kind = torch.randint(most // 2, most, (rows,), generator=generator)
        chances = torch.rand(rows, generator=generator, dtype=torch.float64)
        places = ends[kind] + (chances * (ends[kind + 1] - ends[kind])).long()
        return self.train.batch(order[places], trim=True)

    @functools.cached_property
    def by_size(self) -> tuple[Tensor, Tensor]:
        """The training problems from short to long, and where those of each length end there.
        Shapes: -> (N,), (lengths + 1,)."""
        sizes = self.sizes_of(self.split.train)
        _, counts = np.unique(sizes, return_counts=True)
        return torch.from_numpy(np.argsort(sizes, kind="stable")), torch.from_numpy(np.cumsum([0, *counts]))

    def logits(self, model: Any, batch: Batch) -> Tensor:
        """Shapes: (B, T, V). Of a model that says one token only, each scored token is asked for by the beginning of
        the row before it; what is not scored has zeros."""
        if not getattr(model, "last_only", False):
            return model(batch.inputs)
        rows, places = (batch.targets != IGNORED).nonzero(as_tuple=True)
        found = model.next_token(batch.inputs[rows], places + 1)
        return found.new_zeros(*batch.inputs.shape, found.shape[-1]).index_put((rows, places), found)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The sum over the scored targets, in nats."""
        return cross_entropy(logits, batch.targets, reduction="sum")

    def score(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """On test problems: `val_loss` in nats a scored token, `exact_match`, the part of problems that are answered
        right as a whole, and `token_accuracy`, that of tokens foreseen when all before them are right. On training
        problems `train_exact_match`.

        No answer is decoded for it. The likeliest token at every place of the right answer is right, with the right
        answer before it, exactly where greedy decoding writes the right answer: by induction, decoding has the right
        answer behind it at every place. So one pass over the rows tells the same.
        """
        test = self.passed(model, self.test[:SCORED_WHILE_TRAINING], device)
        seen = self.passed(model, self.seen, device)
        return {
            "val_loss": test["loss"],
            "exact_match": test["exact"],
            "token_accuracy": test["tokens"],
            "train_exact_match": seen["exact"],
        }

    def passed(self, model: nn.Module, rows: Rows, device: torch.device) -> dict[str, float]:
        """Loss a scored token, exact matches and right tokens of one pass over rows."""
        loss, scored, right_tokens, right_rows = 0.0, 0, 0, 0
        for batch in rows.walk():
            batch = batch.to(device)
            logits = self.logits(model, batch)
            loss += float(cross_entropy(logits, batch.targets, reduction="sum"))
            ignored = batch.targets == IGNORED
            right = logits.max(-1).indices == batch.targets
            scored += int((~ignored).sum())
            right_tokens += int(right.sum())
            right_rows += int((right | ignored).all(1).sum())
        return {
            "loss": loss / max(1, scored),
            "tokens": right_tokens / max(1, scored),
            "exact": right_rows / max(1, len(rows)),
        }

    def answer(self, model: nn.Module, prompt: str, **options: Any) -> str:
        """The answer to one problem."""
        return self.answers(model, [prompt])[0]

    # ----------------------------------------------------------------------------------------------------------
    # What the command line asks for

    def walk(self) -> Iterator[Batch]:
        yield from self.test[:SCORED_WHILE_TRAINING].walk()
        yield from self.seen.walk()

    @property
    def positions(self) -> int:
        return self.test[:SCORED_WHILE_TRAINING].inputs.numel() + self.seen.inputs.numel()

    @classmethod
    def refusal(cls, family: str) -> str:
        if family == "counting":
            return f"a counting model counts a text, and {cls.name} has none."
        return PAIRS_ONLY if family in ENCODER_DECODERS else ""

    @classmethod
    def candidates(cls, config: Any, family: str, asked: Mapping[str, Mapping[str, Any]]) -> list[Tables]:
        """The one that there is."""
        return [suggested(family, asked, cls.shape, cls.recipe(config))]

    @classmethod
    def recipe(cls, config: Any) -> Tables:
        """What a GPT is trained with for these options, where that is another than for the rest."""
        return {}

    def choose(
        self, family: str, seconds: float, device: torch.device, asked: Mapping[str, Mapping[str, Any]]
    ) -> Choice:
        tables = suggested(family, asked, self.shape, self.recipe(self.config))
        made: Any = FAMILIES[family][0]
        config: Any = FAMILIES[family][1]
        # What a model is trained on at once, and how far it looks back: a whole row. With hints, of the longest that
        # it will be asked. A fixed window stays as it is.
        known = config.annotations() if family == "gpt" or made.context is None else ()
        tables["model"] = {**tables.get("model", {}), **{n: self.room for n in ("context", "window") if n in known}}
        return Choice(tables, [f"what learns {self.name} fastest: docs/log.md has what was tried"])

    def fitted(self, context: int | None, say: Say) -> tuple[ArithmeticTask, int]:
        """Raises ConfigError for a model that cannot see a whole row."""
        if context is not None and context < self.context:
            raise ConfigError(
                f"model.context = {context}: too short. A row of {self.name} has up to {self.context} tokens, such as"
                f" {self.sentence(self.longest())}"
            )
        return self, self.context if context is None else context

    def longest(self) -> np.ndarray:
        """The problem with the longest row. Shapes: (1, columns)."""
        both = np.concatenate([self.split.train, self.split.test])
        lengths = torch.cat([self.train.lengths, self.test.lengths])
        return both[[int(lengths.argmax())]]

    def sentence(self, problem: np.ndarray) -> str:
        """A problem with its right answer, as the model reads it. Shapes: (1, columns)."""
        row = self.rows(problem)
        tokens = [*row.inputs[0].tolist(), END_ID]
        return self.tokenizer.decode(tokens[: int(row.lengths[0]) - 1])

    def describe(self) -> Iterator[tuple[str, str]]:
        total, train, test = self.count(), len(self.train), len(self.test)
        there = f"{total:,}" if total < 10**15 else f"about 10^{math.log10(total):.0f}"
        yield self.name, f"{there} problems, {train:,} to train on, {test:,} others to test with; split by problem"
        if len(self.test) > SCORED_WHILE_TRAINING:
            yield "", f"{SCORED_WHILE_TRAINING:,} of those are tested while it trains, all by handmade eval"
        yield "a row", f"{self.sentence(self.split.train[:1])}   and only the answer is scored"

    def line_to_beat(self, seconds: float | None) -> None:
        return None

    def headline(self, scores: Mapping[str, float]) -> str:
        if "exact_match" not in scores:
            return ""
        return (
            f"right {reports.share(scores['exact_match'])}, of the trained {reports.share(scores['train_exact_match'])}"
        )

    # ----------------------------------------------------------------------------------------------------------
    # Answers

    @property
    def looked_at(self) -> int:
        """The first test problems: those that `score` takes, by which the best weights are picked."""
        return min(SCORED_WHILE_TRAINING, len(self.test))

    def answers(self, model: nn.Module, prompts: Sequence[str]) -> list[str]:
        """The answers to problems as a person types them, decoded together, as a person reads them."""
        problems = self.parsed(prompts)
        return [self.shown(text) for text in self.decoded(model, problems)]

    def right_answers(self, prompts: Sequence[str]) -> list[str]:
        return [self.shown(text) for text in self.written(self.parsed(prompts))]

    def parsed(self, prompts: Sequence[str]) -> np.ndarray:
        """Shapes: -> (N, columns). Raises ConfigError that names the prompt that is none."""
        found = [self.parse(prompt.replace(" ", "").rstrip("\n")) for prompt in prompts]
        width = max(map(len, found), default=0)
        return np.array([row + [-1] * (width - len(row)) for row in found], dtype=np.int64).reshape(len(found), width)

    def not_one(self, prompt: str, why: str = "") -> ConfigError:
        """The error for a prompt that is no problem."""
        return ConfigError(f"{prompt!r} is no problem of {self.name}{why}. One looks like this: {self.example}")

    def asked(self, problems: np.ndarray) -> list[str]:
        """The questions, as the model reads them."""
        return self.texts(*packed(self.questions(problems)))

    def written(self, problems: np.ndarray) -> list[str]:
        """The right answers, as the model should write them."""
        return self.texts(*packed(self.solutions(problems)))

    def texts(self, rows: np.ndarray, lengths: np.ndarray) -> list[str]:
        """Rows of tokens as text. Shapes: (N, L), (N,)."""
        points = np.array([ord(character) for character in self.tokenizer.characters], dtype=np.uint32)[rows]
        whole = points.astype("<u4").view(f"<U{rows.shape[1]}").reshape(-1).tolist() if rows.size else [""] * len(rows)
        whole = [text.ljust(rows.shape[1]) for text in whole]  # numpy drops trailing zeros, which there are none of
        return [text[:length] for text, length in zip(whole, lengths.tolist(), strict=True)]

    def tokens_needed(self, problems: np.ndarray) -> int:
        """Positions a model needs to answer these: the longest question, and the longest right answer behind it."""
        return packed(self.questions(problems))[0].shape[1] + packed(self.solutions(problems))[0].shape[1]

    def decoded(self, model: nn.Module, problems: np.ndarray) -> list[str]:
        """What the model writes behind each question, up to its end, greedily and with its cache. Raises ConfigError
        for a problem whose row does not fit the model's context."""
        questions, lengths = packed(self.questions(problems))
        room = packed(self.solutions(problems))[0].shape[1] + 1  # the longest right answer, and the end
        context = getattr(model, "context", None)
        longest = int(lengths.max(initial=0)) + room - 1
        if context is not None and longest > context:
            worst = self.asked(problems[[int(lengths.argmax())]])[0]
            raise ConfigError(
                f"{worst}: with its answer {longest} tokens, and the model's context holds {context}. Ask a shorter"
                f" problem, or train with --set model.context={longest}."
            )
        found = np.full((len(problems), room), END_ID)
        device = next((part.device for part in model.parameters()), torch.device("cpu"))
        for length in np.unique(lengths):  # of one length, no row needs padding
            (places,) = np.nonzero(lengths == length)
            for some in np.array_split(places, -(-len(places) // DECODED_AT_ONCE)):
                prompts = torch.from_numpy(questions[some, :length].astype(np.int64)).to(device)
                new = greedy(model, prompts, room, END_ID).cpu().numpy()
                found[some, : new.shape[1]] = new
        ended = found == END_ID
        ends = np.where(ended.any(1), ended.argmax(1), room)
        return self.texts(found, ends)

    # ----------------------------------------------------------------------------------------------------------
    # Reports

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        """What `score` says, on all test problems, with every answer decoded; and what went wrong where.
        `reports.examined` has the parts."""
        return reports.examined(self, model)

    def tell(self, scores: Mapping[str, Any]) -> list[tuple[str, str]]:
        return reports.told(self, scores)

    def pictures(self, model: nn.Module) -> Iterator[tuple[str, Any]]:
        """Where the model looks while it writes the answer to a problem that it solves."""
        figure = pictures.attention_picture(self, model)
        if figure is not None:
            yield "attention.png", figure

    def closing(self, model: nn.Module, seconds: float) -> Iterator[str]:
        """Some test problems with the model's answers, and the figures of `evaluate`, of at most so many problems as
        are answered in a moment."""
        problems = self.split.test[:8]
        given, right = self.decoded(model, problems), self.written(problems)
        for question, answer, wanted in zip(self.asked(problems), given, right, strict=True):
            verdict = "right" if answer == wanted else f"wrong, it is {wanted}"
            yield f"{question}{answer}   {verdict}\n"
        with torch.inference_mode():
            scores = {**reports.examined(self, model, CLOSING_PROBLEMS), "precision": "float32"}
        yield "\n" + "\n".join(in_columns(self.tell(scores))) + "\n"
