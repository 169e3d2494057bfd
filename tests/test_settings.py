from __future__ import annotations

import pytest

from handmade import settings
from handmade.errors import ConfigError, DataError
from handmade.models import FAMILIES
from handmade.presets import PRESETS
from handmade.settings import build, from_file, from_words, merged, sizes_of, to_toml

SIZES = {"vocab_size": 65}


@pytest.fixture
def file(tmp_path):
    """A TOML file with the text given, and what settings it makes."""

    def write(text, family="gpt"):
        path = tmp_path / "my.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return from_file(path, family)

    return write


def message_of(error, call, *arguments):
    with pytest.raises(error) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- on the command line ---------------------------------------------------------------------------------------


def test_words():
    found = from_words(["model.layers=3", "train.clip = none", "optimizer.betas=0.9,0.99", "model.layers=4"], "gpt")
    assert found["model"] == {"layers": 4}  # the last wins
    assert found["train"] == {"clip": None}
    assert found["optimizer"] == {"betas": (0.9, 0.99)}
    assert found["schedule"] == {}
    assert from_words([], "gpt") == merged()


def test_a_word_with_an_equals_sign_in_its_value():
    assert from_words(["train.device=cuda:0=x"], "gpt")["train"] == {"device": "cuda:0=x"}


def test_none_is_a_word_where_the_option_has_it():
    assert from_words(["model.positions=none"], "gpt")["model"] == {"positions": "none"}
    assert from_words(["model.logit_cap=none"], "gpt")["model"] == {"logit_cap": None}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.layrs=3", "--set model.layrs: no such option. Did you mean model.layers?"),
        ("layers=3", "--set layers: no such option. Did you mean model.layers?"),
        ("model.learning_rate=3", "--set model.learning_rate: no such option. Did you mean optimizer.learning_rate?"),
        ("modle.layers=3", "--set modle.layers: no such option. Did you mean model.layers?"),
        ("zzzzzzzzz=3", "--set zzzzzzzzz: no such option. Options look like model.layers, train.seed."),
        ("=3", "--set : no such option. Options look like model.layers, train.seed."),
        ("model.layers", "--set model.layers: needs a value, as in --set model.layers=6."),
        ("model.vocab_size=3", "--set model.vocab_size: the text and its tokenizer decide it."),
        ("model.source_vocab_size=3", "--set model.source_vocab_size: the text and its tokenizer decide it."),
        ("vocab_size=3", "--set vocab_size: the text and its tokenizer decide it."),
        ("model.layers=six", "model.layers = six: must be a whole number."),
        ("model.layers=", "model.layers = : must be a whole number."),
        (
            "model.positions=rotery",
            "model.positions = rotery: must be one of none, learned, sinusoidal, rotary, shared. Did you mean rotary?",
        ),
        ("train.clip=some", "train.clip = some: must be a number or none."),
    ],
)
def test_wrong_words(word, message):
    assert message_of(ConfigError, from_words, [word], "gpt") == message


def test_each_family_has_its_own_options():
    assert message_of(ConfigError, from_words, ["model.layers=3"], "bigram").startswith(
        "--set model.layers: no such option."
    )
    assert message_of(ConfigError, from_words, [], "gtp") == "No model family 'gtp'. Did you mean gpt?"
    assert (
        message_of(ConfigError, from_words, [], "zzzzzz")
        == f"No model family 'zzzzzz'. There are {', '.join(FAMILIES)}."
    )


# --- in a file -------------------------------------------------------------------------------------------------


def test_file(file):
    found = file(
        """
        [model]
        layers = 3
        positions = "none"      # the word that the option has
        logit_cap = "none"      # no value
        dropout = 0             # becomes 0.0

        [train]
        clip = "none"

        [optimizer]
        betas = [0.9, 0.99]
        """
    )
    assert found["model"] == {"layers": 3, "positions": "none", "logit_cap": None, "dropout": 0.0}
    assert found["train"] == {"clip": None}
    assert found["optimizer"] == {"betas": (0.9, 0.99)}
    build("gpt", found, {"vocab_size": 65})


def test_an_empty_file_sets_nothing(file):
    assert file("") == merged()


def test_a_byte_order_mark_and_line_ends_of_windows(file):
    assert file(b"\xef\xbb\xbf[model]\r\nlayers = 3\r\n")["model"] == {"layers": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nlayrs = 3", "no option layrs in [model]. Did you mean layers?"),
        ("[model]\nlearning_rate = 3", "no option learning_rate in [model]. Did you mean [optimizer] learning_rate?"),
        ("[model]\nzzzzzzzz = 3", "no option zzzzzzzz in [model]."),
        ("[modle]\nlayers = 3", "no table [modle]. Did you mean model?"),
        ("[zzzzzzzz]\nlayers = 3", "no table [zzzzzzzz]. There are [model], [train], [optimizer], [schedule], [task]."),
        ("layers = 3", "layers stands in no table. Did you mean [model] layers?"),
        ("model = 3", "model = 3: must be a table, [model]."),
        ("[model]\nvocab_size = 3", "vocab_size in [model]: the text and its tokenizer decide it."),
        ("[model]\nsource_vocab_size = 3", "source_vocab_size in [model]: the text and its tokenizer decide it."),
        ('[model]\nlayers = "six"', "layers = 'six' in [model]: must be a whole number."),
        ('[model]\nlayers = "none"', "layers = 'none' in [model]: must be a whole number."),
        ("[model]\nlayers = 1.0", "layers = 1.0 in [model]: must be a whole number."),
        ("[train]\ncompile = true", "compile = True in [train]: must be one of auto, yes, no."),
    ],
)
def test_wrong_files(file, tmp_path, text, message):
    assert message_of(ConfigError, file, text) == f"{tmp_path / 'my.toml'}: {message}"


def test_what_is_not_toml(file, tmp_path):
    message = message_of(DataError, file, "[model\nlayers = 3")
    assert message.startswith(f"{tmp_path / 'my.toml'}: not TOML (")
    assert "line 1" in message
    assert "cannot be read" in message_of(DataError, file, b"[model]\n# \xff")
    assert "cannot be read" in message_of(DataError, from_file, tmp_path, "gpt")
    missing = tmp_path / "none.toml"
    assert message_of(DataError, from_file, missing, "gpt") == f"{missing}: no such file."


@pytest.mark.parametrize("name", PRESETS)
def test_to_a_file_and_back(name, file):
    preset = PRESETS[name]
    none = {"attention": "none"} if preset.family == "seq2seq-lstm" else {"positions": "none"}  # a word, not nothing
    given = {"train": {"clip": None}, "optimizer": {"embedding_learning_rate": None}, "model": none}
    tables = {table: getattr(preset, table) for table in ("model", "train", "optimizer", "schedule")}
    expected = merged(tables, given)
    found = file(to_toml(expected), preset.family)
    assert found == expected
    sizes = dict.fromkeys(sizes_of(preset.family), 65)
    assert build(preset.family, found, sizes) == build(preset.family, expected, sizes)


def test_whole_configs_go_to_a_file_and_back(file):
    made = build("gpt", merged({"train": {"tokens_per_step": 99}}), SIZES)
    tables = dict(zip(("model", "train", "optimizer", "schedule"), (part.to_dict() for part in made), strict=True))
    del tables["model"]["vocab_size"]
    assert build("gpt", file(to_toml(tables)), SIZES) == made


# --- together --------------------------------------------------------------------------------------------------


def test_a_later_layer_wins():
    first = {"model": {"layers": 1, "heads": 1}, "train": {"steps": 5}}
    second = {"model": {"layers": 2}}
    assert merged(first, second) == {
        "model": {"layers": 2, "heads": 1},
        "train": {"steps": 5},
        "optimizer": {},
        "schedule": {},
        "task": {},
    }
    assert first == {"model": {"layers": 1, "heads": 1}, "train": {"steps": 5}}  # and is not changed by it


def test_build_names_an_option_as_it_is_typed():
    def message(tables, family="gpt"):
        return message_of(ConfigError, build, family, merged(tables), SIZES)

    assert message({"model": {"heads": 5}}).startswith("model.heads = 5: does not divide width = 384.")
    assert message({"train": {"steps": 0}}) == "train.steps = 0: must be at least 1."
    assert message({"optimizer": {"learning_rate": 0.0}}).startswith("optimizer.learning_rate = 0.0: must be")
    assert message({"schedule": {"final": 2.0}}) == "schedule.final = 2.0: must be from 0 to 1."


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_of_every_family(family):
    model, train, optimizer, schedule = build(family, merged(), dict.fromkeys(settings.sizes_of(family), 65))
    assert type(model) is FAMILIES[family][1]
    assert model.vocab_size == 65
    found = settings.options(family)
    assert list(found) == ["model", "train", "optimizer", "schedule", "task"]
    for table, config in zip(found, (model, train, optimizer, schedule), strict=False):
        assert set(found[table]) == set(config.to_dict()) - {"vocab_size", "source_vocab_size"}
