import struct
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from limner.errors import RequestError, WeightsError
from limner.text.t5_tokenizer import T5Tokenizer

TEXT = ["a red cat on a blue table", "a blue cat under the red table", "nine tables in the sky"]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    """A tiny vocabulary, laid out as T5's published tokenizer.json."""
    model = Tokenizer(models.Unigram())
    model.normalizer = normalizers.NFKC()
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace("▁", prepend_scheme="always")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    model.train_from_iterator(TEXT * 20, trainer)
    return model


def field(number: int, content: bytes | float | int) -> bytes:
    """A field in the wire format of protocol buffers."""
    if isinstance(content, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", content)
    if isinstance(content, int):
        return bytes([number << 3]) + varint(content)
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(value: int) -> bytes:
    low, high = value & 127, value >> 7
    return bytes([low | 128]) + varint(high) if high else bytes([low])


def spiece(model: Tokenizer) -> bytes:
    """What SentencePiece would have written: pieces, a trainer's settings, how text is made alike."""
    import json

    vocabulary = json.loads(model.to_str())["model"]["vocab"]
    kinds = {"<pad>": 3, "</s>": 3, "<unk>": 2}
    pieces = b"".join(
        field(1, field(1, piece.encode()) + field(2, float(score)) + field(3, kinds.get(piece, 1)))
        for piece, score in vocabulary
    )
    return pieces + field(2, field(4, 300)) + field(3, field(1, b"identity") + field(3, 1))


@pytest.fixture(scope="module", params=["tokenizer.json", "spiece.model"])
def folder(
    request: pytest.FixtureRequest, trained: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path: Path = tmp_path_factory.mktemp("t5")
    if request.param == "spiece.model":
        (path / "spiece.model").write_bytes(spiece(trained))
    else:
        padded = Tokenizer.from_str(trained.to_str())
        padded.enable_padding(length=9)
        padded.enable_truncation(4)  # as some folders have it; the encoder's caller decides
        padded.save(str(path / "tokenizer.json"))
    return path


def test_ids_end_and_padding(folder: Path, trained: Tokenizer) -> None:
    tokenizer = T5Tokenizer.read(folder)
    plain = trained.encode("a red  table", add_special_tokens=False).ids
    ids, mask, left_out = tokenizer.encode(" a red table ", 20)
    assert (tokenizer.pad, tokenizer.end) == (0, 1)
    assert ids == [*plain, 1, *[0] * (19 - len(plain))]
    assert mask == [True] * (len(plain) + 1) + [False] * (19 - len(plain))
    assert left_out == 0


def test_what_does_not_fit_is_counted(folder: Path, trained: Tokenizer) -> None:
    whole = trained.encode("a red cat on a blue table", add_special_tokens=False).ids
    ids, mask, left_out = T5Tokenizer.read(folder).encode("a red cat on a blue table", 4)
    assert ids == [*whole[:3], 1]
    assert all(mask)
    assert left_out == len(whole) - 3


def test_nothing_and_the_unknown(folder: Path) -> None:
    tokenizer = T5Tokenizer.read(folder)
    assert tokenizer.encode("", 3) == ([1, 0, 0], [True, False, False], 0)
    assert 2 in tokenizer.encode("日", 5)[0]
    assert tokenizer.encode("a\ud800", 5)[2] == 0
    with pytest.raises(RequestError, match="no room"):
        tokenizer.encode("a", 0)


def test_what_is_no_tokenizer_says_so(trained: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"neither tokenizer\.json nor spiece\.model"):
        T5Tokenizer.read(tmp_path)
    whole = spiece(trained)
    for broken in (whole[: len(whole) // 2], b"\x0b\x00", b"\xff" * 40):
        (tmp_path / "spiece.model").write_bytes(broken)
        with pytest.raises(WeightsError, match=str(tmp_path)):
            T5Tokenizer.read(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"can be read"):
        T5Tokenizer.read(tmp_path)
    model = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    model.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(WeightsError, match="<pad>"):
        T5Tokenizer.read(tmp_path)
