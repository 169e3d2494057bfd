"""Every parameter is in exactly one group, of the right kind, with the rate and decay that the config says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from handmade import layers, optimizers
from handmade.errors import ConfigError
from handmade.models.gpt import GPT, GPTConfig
from handmade.models.mlp import MLP, MLPConfig
from handmade.models.ngram import Bigram, BigramConfig
from handmade.models.recurrent import Recurrent, RecurrentConfig
from handmade.models.seq2seq import Seq2Seq, Seq2SeqConfig
from handmade.models.seq2seq_recurrent import Seq2SeqLSTM, Seq2SeqLSTMConfig
from handmade.optimizers import KINDS, OptimizerConfig, build_optimizers, parameter_groups

NAMES = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "muon")


class Transformer(nn.Module):
    """Like a GPT, of torch.nn parts, with oddities: a norm with a weight of two axes, a convolution, a scalar."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(11, 8), nn.Embedding(6, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.convolution = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm((6, 8))
        self.gain = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(8, 11)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions.weight
        x = self.convolution(self.block(x).mT).mT
        return self.head(self.gain * self.norm(x))


def gpt(**changes: Any) -> GPT:
    base = {"vocab_size": 11, "context": 6, "layers": 2, "heads": 2, "width": 8, "positions": "learned", "bias": True}
    return GPT(GPTConfig(**{**base, **changes}))


def seq2seq(**changes: Any) -> Seq2Seq:
    return Seq2Seq(Seq2SeqConfig(11, 13, context=6, heads=2, width=8).replace(positions="learned", **changes))


MODELS = {
    "torch": Transformer,
    "torch, tied": lambda: Transformer(tied=True),
    "gpt": gpt,
    "gpt, tied": lambda: gpt(tied_head=True),
    "gpt, bare": lambda: gpt(tied_head=False, positions="rotary", bias=False, norm="rms", head_bias=True),
    "mlp": lambda: MLP(MLPConfig(vocab_size=11, window=3, width=4, hidden=8)),
    "rnn": lambda: Recurrent(RecurrentConfig(vocab_size=11, cell="rnn", width=8, layers=2)),
    "lstm": lambda: Recurrent(RecurrentConfig(vocab_size=11, width=8)),
    "bigram": lambda: Bigram(BigramConfig(vocab_size=11)),
    "seq2seq, tied": seq2seq,
    "seq2seq": lambda: seq2seq(tied_head=False, head_bias=True),
    "seq2seq-lstm, additive": lambda: Seq2SeqLSTM(Seq2SeqLSTMConfig(11, 13, width=8, layers=2)),
    "seq2seq-lstm": lambda: Seq2SeqLSTM(Seq2SeqLSTMConfig(11, 13, width=8, attention="multiplicative")),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_in_exactly_one_group(name: str, model: str) -> None:
    made = MODELS[model]()
    built = build_optimizers(made, OptimizerConfig(name=name))  # type: ignore[arg-type]
    placed = [id(p) for optimizer in built for group in optimizer.param_groups for p in group["params"]]
    assert len(placed) == len(set(placed))
    assert set(placed) == {id(p) for p in made.parameters()}
    assert all(group["name"] in KINDS for optimizer in built for group in optimizer.param_groups)


def test_kinds_of_a_torch_model() -> None:
    found = {kind: set(members) for kind, members in parameter_groups(Transformer()).items()}
    assert found["embeddings"] == {"tokens.weight", "positions.weight"}
    assert found["head"] == {"head.weight"}
    assert found["matrices"] == {
        "block.self_attn.in_proj_weight",
        "block.self_attn.out_proj.weight",
        "block.linear1.weight",
        "block.linear2.weight",
        "convolution.weight",
    }
    assert {"norm.weight", "norm.bias", "gain", "head.bias", "convolution.bias"} < found["vectors"]


def test_kinds_of_a_gpt() -> None:
    model = gpt(tied_head=False, head_bias=True)
    found = parameter_groups(model)
    assert set(found["embeddings"]) == {"embedding.weight", "position.weight"}
    assert set(found["head"]) == {"head.weight"}
    assert len(found["matrices"]) == 2 * 6
    assert all(name.startswith("blocks.") and p.ndim == 2 for name, p in found["matrices"].items())
    assert all(p.ndim == 1 for p in found["vectors"].values())


def test_kinds_of_an_encoder_decoder() -> None:
    found = parameter_groups(seq2seq(tied_head=False, head_bias=True))
    tables = {f"{side}{kind}.weight" for side in ("source_", "") for kind in ("embedding", "position")}
    assert set(found["embeddings"]) == tables
    assert set(found["head"]) == {"head.weight"}
    # Of an encoder's layer: queries, keys, values, output, two of the feed-forward layer; four more of a decoder's.
    assert len(found["matrices"]) == 2 * 6 + 2 * 10
    assert all(name.startswith(("encoder.", "decoder.")) and p.ndim == 2 for name, p in found["matrices"].items())
    assert "encoder.0.attention_norm.weight" in found["vectors"]
    assert all(p.ndim == 1 for p in found["vectors"].values())


def test_kinds_of_an_encoder_decoder_of_lstms() -> None:
    found = parameter_groups(Seq2SeqLSTM(Seq2SeqLSTMConfig(11, 13, width=8)))
    assert set(found["embeddings"]) == {"source_embedding.weight", "embedding.weight"}
    assert set(found["head"]) == {"head.weight"}
    matrices = {name.removeprefix("additive.") for name in found["matrices"] if name.startswith("additive.")}
    parts = {f"{name}.weight" for name in ("query", "key", "energy", "readout")}
    assert matrices == {*parts, "cell.weight_ih_l0", "cell.weight_hh_l0"}
    assert all(p.ndim == 1 for p in found["vectors"].values())


@pytest.mark.parametrize("model", ["torch, tied", "gpt, tied", "seq2seq, tied"])
def test_a_tied_head_is_an_embedding(model: str) -> None:
    made = MODELS[model]()
    found = parameter_groups(made)
    assert not found["head"]
    assert any(p is made.head.weight for p in found["embeddings"].values())


def test_an_embedding_wins_whichever_module_comes_first() -> None:
    model = nn.Module()
    model.output, model.table = layers.Linear(4, 7, bias=False), layers.Embedding(7, 4)
    model.output.weight = model.table.weight
    found = parameter_groups(model)
    assert list(found["embeddings"]) == ["output.weight"]
    assert not found["matrices"]


def test_frozen_parameters_are_left_out() -> None:
    model = Transformer()
    model.tokens.weight.requires_grad_(False)
    assert set(parameter_groups(model)["embeddings"]) == {"positions.weight"}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameters"):
        build_optimizers(model, OptimizerConfig())


def by_kind(built: list[torch.optim.Optimizer]) -> dict[str, dict[str, Any]]:
    return {group["name"]: group for optimizer in built for group in optimizer.param_groups}


@pytest.mark.parametrize("name", NAMES)
def test_decay_reaches_matrices_and_head_only_unless_asked(name: str) -> None:
    config = OptimizerConfig(name=name, weight_decay=0.3)  # type: ignore[arg-type]
    decays = {kind: group["weight_decay"] for kind, group in by_kind(build_optimizers(gpt(), config)).items()}
    head = decays.pop("head", 0.3)
    assert head == 0.3
    assert decays == {"matrices": 0.3, "embeddings": 0.0, "vectors": 0.0}
    asked = by_kind(build_optimizers(gpt(), config.replace(decay_embeddings=True)))
    assert asked["embeddings"]["weight_decay"] == 0.3
    assert asked["vectors"]["weight_decay"] == 0.0


def test_decay_seen_in_the_weights() -> None:
    model = Transformer()
    (optimizer,) = build_optimizers(model, OptimizerConfig(name="adamw", learning_rate=0.1, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # so that decay alone moves anything
    optimizer.step()
    found = parameter_groups(model)
    for kind, members in found.items():
        for name, parameter in members.items():
            share = 0.95 if kind in ("matrices", "head") else 1.0
            torch.testing.assert_close(parameter.detach(), share * before[name])


def test_rates_by_kind() -> None:
    def rates(**options: Any) -> dict[str, float]:
        groups = by_kind(build_optimizers(Transformer(), OptimizerConfig(**options)))
        assert all(group["initial_lr"] == group["lr"] for group in groups.values())
        return {kind: group["lr"] for kind, group in groups.items()}

    assert rates(name="adamw", learning_rate=0.5) == dict.fromkeys(KINDS, 0.5)
    assert rates(name="muon", learning_rate=0.5) == {
        "matrices": 0.5,
        "embeddings": 0.1,
        "head": 0.1,
        "vectors": 0.1,
    }
    own = {"embedding_learning_rate": 0.2, "head_learning_rate": 0.3, "vector_learning_rate": 0.4}
    for name in ("sgd", "muon"):
        expected = {"matrices": 0.5, "embeddings": 0.2, "head": 0.3, "vectors": 0.4}
        assert rates(name=name, learning_rate=0.5, **own) == expected


def test_options_reach_the_optimizer() -> None:
    config = OptimizerConfig(
        name="muon", betas=(0.8, 0.7), eps=1e-6, momentum=0.6, muon_precision="bfloat16", muon_steps=3
    )
    muon, adamw = build_optimizers(gpt(), config)
    assert isinstance(muon, optimizers.Muon)
    assert isinstance(adamw, optimizers.AdamW)
    (matrices,) = muon.param_groups
    assert (matrices["momentum"], matrices["precision"], matrices["steps"]) == (0.6, "bfloat16", 3)
    assert all(group["betas"] == (0.8, 0.7) and group["eps"] == 1e-6 for group in adamw.param_groups)
    for name, option, value in [
        ("momentum", "momentum", 0.6),
        ("nesterov", "momentum", 0.6),
        ("adagrad", "eps", 1e-6),
        ("rmsprop", "eps", 1e-6),
        ("rmsprop", "alpha", 0.7),
        ("adam", "betas", (0.8, 0.7)),
        ("adamw", "betas", (0.8, 0.7)),
        ("adamw", "eps", 1e-6),
    ]:
        (built,) = build_optimizers(gpt(), config.replace(name=name))
        assert type(built).__name__.lower() == name
        assert all(group[option] == value for group in built.param_groups)


@pytest.mark.parametrize("name", NAMES)
def test_each_optimizer_learns_one_batch(name: str) -> None:
    torch.manual_seed(0)
    model, tokens = Transformer(), torch.randint(0, 11, (4, 6))
    rate = {"sgd": 0.1, "momentum": 0.01, "nesterov": 0.01}.get(name, 0.02)
    built = build_optimizers(model, OptimizerConfig(name=name, learning_rate=rate))  # type: ignore[arg-type]
    losses = []
    for _ in range(30):
        loss = layers.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
        loss.backward()
        for optimizer in built:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    "bad",
    [
        {"name": "adamx"},
        {"learning_rate": 0.0},
        {"head_learning_rate": -1.0},
        {"embedding_learning_rate": float("inf")},
        {"betas": (0.9,)},
        {"betas": (0.9, 1.0)},
        {"eps": -1.0},
        {"momentum": 1.0},
        {"weight_decay": -0.1},
        {"muon_steps": 0},
        {"muon_precision": "float16"},
    ],
)
def test_a_config_out_of_range_names_the_field(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        OptimizerConfig(**bad)


def test_the_config_goes_to_json_and_back() -> None:
    config = OptimizerConfig(name="muon", betas=(0.8, 0.9), head_learning_rate=0.5)
    assert OptimizerConfig.from_dict(config.to_dict()) == config
