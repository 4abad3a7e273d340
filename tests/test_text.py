"""The tokenizer wrapper: Hugging Face folders, a character tokenizer, streaming that never splits a character."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Inner

from gamut.codecs.answer import TextStream
from gamut.codecs.text import Tokenizer


def byte_level(specials=("<eot>", "<audio_0>")) -> Inner:
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(["hello world, hello 你好 мир"] * 3, trainer)
    inner.add_tokens([AddedToken(text, special=True) for text in specials])
    return inner


BYTES = Tokenizer(byte_level())


def test_characters_keep_their_order_and_specials_follow():
    text = Tokenizer.characters("ab 你0", ["<go>", "<audio_12>"])
    assert text.encode("b<go>你a<audio_12> 0") == [1, 5, 3, 0, 6, 2, 4]
    assert text.decode([1, 5, 3, 0, 6, 2, 4]) == "b<go>你a<audio_12> 0"
    assert (text.vocab, text.id("<go>"), text.id("a")) == (7, 5, 0)


def test_unknown_character_is_named():
    text = Tokenizer.characters("ab", ["<z>"])
    assert text.encode("a<z>b") == [0, 2, 1]
    with pytest.raises(ValueError, match=r"'aq<z>Q' has characters .* \['q', 'Q'\]; allowed: 'ab'"):
        text.encode("aq<z>Q")


def test_unknown_token_offers_the_closest():
    with pytest.raises(ValueError, match=r"'<audio_O>' is not among the \d+ .* closest: \['<audio_0>'"):
        BYTES.id("<audio_O>")


@pytest.mark.parametrize("make", [lambda: BYTES, lambda: Tokenizer.characters("ab 你", ["<go>"])])
def test_saved_tokenizer_is_the_same(tmp_path, make):
    text = make()
    text.save_pretrained(tmp_path)
    again = Tokenizer.from_pretrained(tmp_path)
    ids = list(range(again.vocab))
    assert again.decode(ids) == text.decode(ids) and again.encode("ab a") == text.encode("ab a")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("ab 你", add_special_tokens=False) == text.encode("ab 你")


def test_tokens_listed_only_beside_tokenizer_json_are_added(tmp_path):
    byte_level([]).save(str(tmp_path / "tokenizer.json"))
    size = byte_level([]).get_vocab_size()
    listed = {str(size + i): {"content": f"<t{i}>", "special": True} for i in range(2)}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": listed}))
    text = Tokenizer.from_pretrained(tmp_path)
    assert text.encode("<t1><t0>") == [size + 1, size] and text.decode([size]) == "<t0>"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"7": {"content": "<t0>"}}}))
    with pytest.raises(ValueError, match=f"'<t0>' the id 7, tokenizer.json {size}"):
        Tokenizer.from_pretrained(tmp_path)


def test_vocab_counts_gaps():
    inner = Inner(models.WordLevel({"a": 0, "b": 9}))
    assert Tokenizer(inner).vocab == 10


@given(st.text())
@settings(max_examples=100)
def test_byte_level_round_trip(text):
    assert BYTES.decode(BYTES.encode(text)) == text


@given(st.text(min_size=1))
@settings(max_examples=100)
def test_stream_emits_only_whole_characters(text):
    stream = TextStream(BYTES)
    pieces = [stream.push(id) for id in BYTES.encode(text)]
    assert "".join(pieces) + stream.end() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, BYTES.vocab - 1), max_size=40))
@settings(max_examples=100)
def test_stream_of_any_ids_adds_up_to_decode(ids):
    """A sampled sequence need not be valid UTF-8: the pieces still join to what decode gives for the whole."""
    stream = TextStream(BYTES)
    assert "".join(stream.push(id) for id in ids) + stream.end() == BYTES.decode(ids)


def test_folders_without_a_tokenizer_say_so(tmp_path):
    with pytest.raises(ValueError, match=r"has no tokenizer.json; copy the one"):
        Tokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(ValueError, match=r"tokenizer.json' is not a tokenizer"):
        Tokenizer.from_pretrained(tmp_path)
