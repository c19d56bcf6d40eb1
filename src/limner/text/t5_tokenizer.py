"""T5's tokens: the likeliest cutting of a text into known pieces (Kudo 2018, "unigram").

The vocabulary comes with a model, as `tokenizer.json` or as `spiece.model`, the file of SentencePiece. Of the
latter only what T5 uses is read: pieces with the logarithms of their chances, and the table by which
characters are first made alike.
"""

from collections.abc import Iterator
from pathlib import Path
from struct import unpack

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import Unigram

from limner.errors import RequestError, WeightsError

PAD, END = "<pad>", "</s>"
BLANK = "▁"  # how a blank is written in pieces
UNKNOWN = 2  # SentencePiece's number for the kind of the piece that stands for what is in no other


class T5Tokenizer:
    """Text to ids."""

    def __init__(self, model: Tokenizer) -> None:
        """Raises WeightsError for a vocabulary without padding and end."""
        self._model = model
        model.no_padding()
        model.no_truncation()
        pad, end = model.token_to_id(PAD), model.token_to_id(END)
        if pad is None or end is None:
            raise WeightsError(f"a vocabulary of T5 has {PAD} and {END}, and this one does not")
        self.pad, self.end = pad, end

    @classmethod
    def read(cls, folder: Path) -> "T5Tokenizer":
        """The tokenizer in a folder such as `tokenizer_2`. Raises WeightsError when there is none, or none
        that can be read."""
        whole, pieces = folder / "tokenizer.json", folder / "spiece.model"
        try:
            if whole.is_file():
                return cls(Tokenizer.from_str(whole.read_text("utf-8")))
            if pieces.is_file():
                return cls(_from_pieces(pieces.read_bytes()))
        except WeightsError as error:
            raise WeightsError(f"{folder}: {error}") from None
        except Exception as error:  # the library raises nothing more exact
            raise WeightsError(f"{folder} holds no tokenizer that can be read: {error}") from None
        raise WeightsError(f"{folder} holds no tokenizer: neither tokenizer.json nor spiece.model")

    def encode(self, text: str, length: int) -> tuple[list[int], list[bool], int]:
        """What an encoder is given: the ids of the text, its end and padding, `length` in all.

        Returns:
            (`length` ids, which of them are not padding, how many tokens at the end did not fit).

        Raises:
            RequestError: `length` leaves no room for the end.
        """
        if length < 1:
            raise RequestError(f"length {length} leaves no room for the end of a text; 1 is the least")
        whole = text.encode("utf-8", "replace").decode("utf-8")  # halves of surrogate pairs are no text
        ids = self._model.encode(whole, add_special_tokens=False).ids
        kept = [*ids[: length - 1], self.end]
        padding = length - len(kept)
        return kept + [self.pad] * padding, [True] * len(kept) + [False] * padding, len(ids) + 1 - len(kept)


def _from_pieces(packed: bytes) -> Tokenizer:
    """The tokenizer in a SentencePiece file: a ModelProto, of which field 1 holds the pieces in the order of
    their ids (text, logarithm, kind) and field 3 how text is made alike (field 2: the table)."""
    vocabulary: list[tuple[str, float]] = []
    table, unknown = b"", None
    for field, value in _fields(packed):
        if field == 1:
            piece = dict(_fields(value))
            if int.from_bytes(piece.get(3, b"\x01"), "little") == UNKNOWN:
                unknown = len(vocabulary)
            vocabulary.append((piece[1].decode("utf-8"), unpack("<f", piece.get(2, bytes(4)))[0]))
        elif field == 3:
            table = dict(_fields(value)).get(2, b"")
    model = Tokenizer(Unigram(vocabulary, unk_id=unknown))
    if table:
        model.normalizer = normalizers.Precompiled(table)
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(BLANK, prepend_scheme="always")]
    )
    return model


def _fields(packed: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of a message in protocol buffers' wire format; numbers as little-endian bytes."""
    place = 0
    while place < len(packed):
        tag, place = _varint(packed, place)
        kind = tag & 7
        if kind == 0:
            value, place = _varint(packed, place)
            yield tag >> 3, value.to_bytes(8, "little")
            continue
        if kind == 2:
            size, place = _varint(packed, place)
        else:
            size = {1: 8, 5: 4}.get(kind, len(packed))
        if place + size > len(packed):
            raise WeightsError("spiece.model is not whole")
        yield tag >> 3, packed[place : place + size]
        place += size


def _varint(packed: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        if place >= len(packed):
            break
        byte = packed[place]
        value, place = value | (byte & 127) << shift, place + 1
        if byte < 128:
            return value, place
    raise WeightsError("spiece.model is not whole")
