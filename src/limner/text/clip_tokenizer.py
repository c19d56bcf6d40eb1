"""CLIP's tokens: byte pairs over lower-case text (Radford et al. 2021, section 2.4; Sennrich et al. 2016).

The vocabulary lies in `clip/`, so nothing is fetched. Text is composed (NFC), its white space collapsed and
its letters lowered; what is left is cut into words, single digits and runs of punctuation, and each piece
into known pairs, the last of a piece marked `</w>`.
"""

import gzip
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from limner.errors import ConfigError

__all__ = ["BEGIN", "END", "CLIPTokenizer"]

BEGIN = 49_406  # <|startoftext|>
END = 49_407  # <|endoftext|>
SPECIALS = ("<|startoftext|>", "<|endoftext|>")
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class CLIPTokenizer:
    """Text to ids and back.

    Args:
        pad: what follows the end of a text. Stable Diffusion 1 and the first encoder of XL repeat the end,
        49,407; Stable Diffusion 2 and the second encoder of XL want 0.
    """

    def __init__(self, pad: int = END) -> None:
        self.pad = pad
        self._model = _model()

    def encode(self, text: str) -> list[int]:
        """The ids of a text of any length, without begin and end; each in [0, 49,408). Halves of surrogate
        pairs, which are no text, count as question marks."""
        whole = text.encode("utf-8", "replace").decode("utf-8")
        return self._model.encode(whole, add_special_tokens=False).ids

    def frame(self, ids: Sequence[int], length: int = 77) -> tuple[list[int], int]:
        """What a text tower is given: begin, ids, end and padding, `length` in all.

        Returns:
            (`length` ids, how many of `ids` at the end did not fit).

        Raises:
            ConfigError: `length` leaves no room for begin and end.
        """
        if length < 2:
            raise ConfigError(f"length {length} leaves no room for begin and end; 2 is the least")
        kept = list(ids[: length - 2])
        framed = [BEGIN, *kept, END]
        return framed + [self.pad] * (length - len(framed)), len(ids) - len(kept)

    def decode(self, ids: Sequence[int]) -> str:
        """Text that reads like what was encoded: a blank after every piece, bytes that are no text replaced.

        Raises ConfigError for an id outside the vocabulary.
        """
        if wrong := [number for number in ids if not 0 <= number <= END]:
            raise ConfigError(f"{wrong} are not among the ids of CLIP's vocabulary, 0 to {END}")
        pieces = [self._model.id_to_token(number) or "" for number in ids]
        bytes_of = {sign: byte for byte, sign in _signs().items()}
        said = "".join(piece for piece in pieces if piece not in SPECIALS).replace("</w>", " ")
        return bytes(bytes_of.get(sign, ord(" ")) for sign in said).decode("utf-8", "replace").strip()

    def vocabulary(self) -> dict[str, int]:
        """Every token and its id, as vocab.json of a diffusers folder has them."""
        return self._model.get_vocab(with_added_tokens=True)

    def merges(self) -> list[tuple[str, str]]:
        """Which neighbours become one, the most urgent first: the lines of merges.txt."""
        return _merges()


def _signs() -> dict[int, str]:
    """A visible character for every byte, in the order of the vocabulary: itself where it is one, else from
    256 on (Radford et al. 2019, "GPT-2")."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


def _merges() -> list[tuple[str, str]]:
    """Which neighbours become one, the most urgent first."""
    packed = resources.files("limner.text").joinpath("clip", "merges.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").splitlines()
    return [(first, second) for first, _, second in (line.partition(" ") for line in lines)]


@lru_cache(maxsize=1)
def _model() -> Tokenizer:
    """Bytes, bytes that end a piece, what the merges make, specials: the place is the id."""
    merges = _merges()
    signs = list(_signs().values())
    ending = [f"{sign}</w>" for sign in signs]
    tokens = [*signs, *ending, *(first + second for first, second in merges), *SPECIALS]
    model = Tokenizer(
        BPE(
            {token: number for number, token in enumerate(tokens)},
            merges,
            end_of_word_suffix="</w>",
            unk_token=SPECIALS[1],
        )
    )
    model.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    model.add_special_tokens([AddedToken(special, normalized=False) for special in SPECIALS])
    return model
