import random

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.errors import ConfigError
from limner.text.clip_tokenizer import BEGIN, END, CLIPTokenizer, _merges, _model

SIGNS = (
    "abcXYZ éÉßİıſǅﬁÅÅ日本語한국ñ̃ΣςσЖж١٢٣½Ⅷ 0123456789 .,;:!?'\"()[]{}<|>/\\_-+*=~`@#$%^&…—“”"
    "\t\n\r\x00\x01\x07\x1f\x7f\x85\xa0\u2003\u200b\u200d\ufeff\u0300😀👩‍👩‍👧‍👦🇩🇪❤️\U0010ffff"
)
SPECIALS = ("<|endoftext|>", "<|startoftext|>", "<|EndOfText|>", " <|endoftext|>,", "<|endoftext|")


@pytest.fixture(scope="module")
def reference() -> transformers.CLIPTokenizer:
    return transformers.CLIPTokenizer(
        vocab=_model().get_vocab(with_added_tokens=True), merges=list(_merges())
    )


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer()


def test_known_ids(tokenizer: CLIPTokenizer) -> None:
    """As printed in the papers' notebooks and the documentation of transformers."""
    assert tokenizer.encode("a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert tokenizer.encode("hello world") == [3306, 1002]
    assert tokenizer.encode("A  PHOTO\nof a\tcat ") == [320, 1125, 539, 320, 2368]
    assert tokenizer.encode("!") == [256]
    assert tokenizer.encode("") == tokenizer.encode(" \n") == []


@pytest.mark.parity
def test_fuzzed_text_gives_the_ids_of_the_reference(
    tokenizer: CLIPTokenizer, reference: transformers.CLIPTokenizer
) -> None:
    chance = random.Random(0)
    texts = []
    for _ in range(3000):
        signs = [
            chance.choice(SIGNS) if chance.random() < 0.9 else chr(chance.randrange(0xE000, 0x110000))
            for _ in range(chance.randrange(30))
        ]
        if chance.random() < 0.1:
            signs.insert(len(signs) // 2, chance.choice(SPECIALS))
        texts.append("".join(signs))
    for text, ids in zip(texts, reference(texts, add_special_tokens=False).input_ids, strict=True):
        assert tokenizer.encode(text) == ids, repr(text)


@pytest.mark.parity
@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_frames_like_the_reference(
    tokenizer: CLIPTokenizer, reference: transformers.CLIPTokenizer, text: str
) -> None:
    want = reference(text, padding="max_length", max_length=77, truncation=True).input_ids
    framed, _ = tokenizer.frame(tokenizer.encode(text))
    assert framed == want


def test_frame_says_what_did_not_fit() -> None:
    assert CLIPTokenizer().frame([1, 2], length=6) == ([BEGIN, 1, 2, END, END, END], 0)
    assert CLIPTokenizer(pad=0).frame([1, 2], length=6) == ([BEGIN, 1, 2, END, 0, 0], 0)
    assert CLIPTokenizer().frame([1, 2, 3, 4, 5], length=5) == ([BEGIN, 1, 2, 3, END], 2)
    with pytest.raises(ConfigError, match="length 1 leaves no room"):
        CLIPTokenizer().frame([], length=1)


def test_decoded_text_reads_like_the_text(tokenizer: CLIPTokenizer) -> None:
    for text in ("a photo of a cat", "école 日本 😀", "half - done , 2 0"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.frame(tokenizer.encode("a cat"))[0]) == "a cat"
    assert tokenizer.decode([tokenizer.encode("😀")[0]]) != ""
    with pytest.raises(ConfigError, match=r"\[49408, -1\] are not among"):
        tokenizer.decode([320, 49_408, -1])


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(codec="utf-8"), max_size=60))
def test_decoding_encodes_to_the_same_words(tokenizer: CLIPTokenizer, text: str) -> None:
    said = tokenizer.decode(tokenizer.encode(text))
    assert said == said.strip()
    assert "</w>" not in said or "</w>" in text.lower()


def test_half_a_surrogate_pair_is_a_question_mark(tokenizer: CLIPTokenizer) -> None:
    assert tokenizer.encode("cat \ud83d") == tokenizer.encode("cat ?")


def test_the_vocabulary_is_whole() -> None:
    vocabulary = _model().get_vocab(with_added_tokens=True)
    assert sorted(vocabulary.values()) == list(range(49_408))
    assert vocabulary["<|startoftext|>"] == BEGIN
    assert vocabulary["<|endoftext|>"] == END
    assert len(_merges()) == 48_894
