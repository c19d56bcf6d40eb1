"""Words to ids and back, and nothing cut off in silence."""

import subprocess
import sys

import pytest

from limner.errors import ConfigError
from limner.text.lexicon import load_lexicon
from limner.text.tokenizers import WordTokenizer, default_vocabulary

OBJECTS = ["cat", "hot dog", "orange", "apple"]


@pytest.fixture
def tokenizer() -> WordTokenizer:
    return WordTokenizer(default_vocabulary(OBJECTS))


def test_a_prompt_goes_there_and_back(tokenizer: WordTokenizer) -> None:
    prompt = 'two red apples to the left of a hot dog on a blue background in flat style with "ok"'
    said = load_lexicon().read(prompt).words
    ids, dropped = tokenizer.encode(said, 32)
    assert (len(ids), dropped) == (32, 0)
    assert tokenizer.decode(ids) == list(said)
    assert ids[0] == tokenizer.bos
    assert ids[len(said) + 1] == tokenizer.eos
    assert set(ids[len(said) + 2 :]) == {tokenizer.pad}
    assert tokenizer.unk not in ids


def test_expressions_of_several_words_are_one_token(tokenizer: WordTokenizer) -> None:
    ids, _ = tokenizer.encode(["left of", "hot dog"], 4)
    assert len(set(ids)) == 4
    assert tokenizer.decode(ids) == ["left of", "hot dog"]


def test_what_does_not_fit_is_counted(tokenizer: WordTokenizer) -> None:
    ids, dropped = tokenizer.encode(["a", "cat", "and", "a", "apple"], 5)
    assert dropped == 2
    assert tokenizer.decode(ids) == ["a", "cat", "and"]
    assert ids[-1] == tokenizer.eos


def test_an_exact_fit_drops_nothing(tokenizer: WordTokenizer) -> None:
    ids, dropped = tokenizer.encode(["a", "cat"], 4)
    assert dropped == 0
    assert tokenizer.pad not in ids


def test_no_words_are_all_padding(tokenizer: WordTokenizer) -> None:
    assert tokenizer.encode([], 3) == ([tokenizer.bos, tokenizer.eos, tokenizer.pad], 0)


def test_a_word_outside_is_unk(tokenizer: WordTokenizer) -> None:
    assert "dog" not in tokenizer
    assert tokenizer.encode(["dog"], 3)[0] == [tokenizer.bos, tokenizer.unk, tokenizer.eos]


def test_the_vocabulary_is_stable_and_without_repeats() -> None:
    vocabulary = default_vocabulary(OBJECTS)
    assert vocabulary[:4] == ["<pad>", "<bos>", "<eos>", "<unk>"]
    assert len(vocabulary) == len(set(vocabulary))
    assert [word for word in vocabulary if word in OBJECTS] == ["orange", "cat", "hot dog", "apple"]
    assert vocabulary == default_vocabulary(OBJECTS)
    assert default_vocabulary([*OBJECTS, "dog"])[:-1] == vocabulary, "a new object shifts no id"


def test_every_word_that_a_reading_can_give_is_in_the_vocabulary() -> None:
    lexicon = load_lexicon()
    tokenizer = WordTokenizer(default_vocabulary([entry.name for entry in lexicon.entries]))
    said = {word for entry in lexicon.entries for word in lexicon.read(f"5 {entry.plural}").words}
    assert {word for word in said if word not in tokenizer} == set()


@pytest.mark.parametrize(
    "vocabulary, complaint",
    [
        (["<pad>", "cat"], "lacks <bos>, <eos>, <unk>"),
        ([*default_vocabulary([]), "red"], "red more than once"),
    ],
)
def test_a_broken_vocabulary_is_refused(vocabulary: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        WordTokenizer(vocabulary)


def test_a_length_without_room_is_refused(tokenizer: WordTokenizer) -> None:
    with pytest.raises(ConfigError, match="length 1"):
        tokenizer.encode(["cat"], 1)


def test_reading_needs_neither_torch_nor_the_tokenizers_library() -> None:
    code = (
        "import sys; from limner.text.lexicon import load_lexicon; load_lexicon().nearest('elefant');"
        "print({'torch', 'tokenizers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
