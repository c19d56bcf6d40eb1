"""From canonical words to numbers: a word-level tokenizer over a fixed vocabulary.

Canonical words (see `limner.text.lexicon`) are whole tokens even where they hold a space: "left of", "hot
dog". A model is trained on some objects; its vocabulary list travels in the header of its weights, so that
ids never shift.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from limner.errors import ConfigError
from limner.text import words

__all__ = ["WordTokenizer", "default_vocabulary"]


def default_vocabulary(objects: Sequence[str]) -> list[str]:
    """The tokens of a model that draws these objects: specials, fixed classes, letters, then the objects in
    their order.

    A word that is in two classes ("orange", the colour and the fruit) is one token. The order only depends on
    `objects`.
    """
    fixed = [word for members in words.CLASSES.values() for word in members]
    listed = (*words.SPECIALS, words.PLURAL, words.QUOTE, words.SPACE, *words.LETTERS, *fixed, *objects)
    return list(dict.fromkeys(listed))


class WordTokenizer:
    """Words to ids and back.

    Args:
        vocabulary: all tokens; the position is the id. It has to hold `<pad> <bos> <eos> <unk>`.

    Raises:
        ConfigError: a special token is missing, or a token stands twice.
    """

    def __init__(self, vocabulary: Sequence[str]) -> None:
        ids = {word: number for number, word in enumerate(vocabulary)}
        missing = [word for word in words.SPECIALS if word not in ids]
        if missing:
            needed = ", ".join(words.SPECIALS)
            raise ConfigError(f"the vocabulary lacks {', '.join(missing)}; begin it with {needed}")
        if len(ids) != len(vocabulary):
            twice = sorted({word for word in vocabulary if list(vocabulary).count(word) > 1})
            raise ConfigError(f"the vocabulary holds {', '.join(twice)} more than once; list each once")
        self.vocabulary: tuple[str, ...] = tuple(vocabulary)
        self.pad, self.bos, self.eos, self.unk = (ids[word] for word in words.SPECIALS)
        self._known = frozenset(ids)
        self._model = Tokenizer(WordLevel(vocab=ids, unk_token=words.UNK))

    def __len__(self) -> int:
        return len(self.vocabulary)

    def __contains__(self, word: str) -> bool:
        return word in self._known

    def encode(self, said: Sequence[str], length: int) -> tuple[list[int], int]:
        """Ids of `<bos> words <eos>` in picture order (`words.picture_order`), padded with `<pad>`.

        Args:
            said: canonical words, as `Reading.words` gives them; a word outside the vocabulary becomes
            `<unk>`. length: number of ids to return, at least 2.

        Returns:
            (`length` ids in [0, len(self)), how many words at the end did not fit).

        Raises:
            ConfigError: `length` leaves no room for `<bos>` and `<eos>`.
        """
        if length < 2:
            raise ConfigError(
                f"length {length} leaves no room for {words.BOS} and {words.EOS}; 2 is the least"
            )
        kept = list(words.picture_order(said)[: length - 2])
        encoding = self._model.encode(kept, is_pretokenized=True, add_special_tokens=False)
        ids = [self.bos, *encoding.ids, self.eos]
        return ids + [self.pad] * (length - len(ids)), len(said) - len(kept)

    def decode(self, ids: Sequence[int]) -> list[str]:
        """The words of an encoding, without `<pad>`, `<bos>` and `<eos>`."""
        frame = {self.pad, self.bos, self.eos}
        return [self.vocabulary[number] for number in ids if number not in frame]
