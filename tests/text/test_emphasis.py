"""Chunks of weighted tokens, and the arithmetic of their weights."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from limner.errors import RequestError
from limner.text.clip_tokenizer import BEGIN, END, CLIPTokenizer
from limner.text.emphasis import (
    CHUNK,
    EMPHASES,
    Chunk,
    comfy,
    emphasise,
    frame,
    mean,
    plain,
    split,
    token_count,
)
from limner.text.prompt import parse

COMMA = 1


def tokenize(text: str) -> list[int]:
    """A word is a token: a number is its own id, a comma COMMA, and other words come from their letters."""
    return [
        COMMA if word == "," else int(word) if word.isdigit() else 1000 + sum(map(ord, word.lower()))
        for word in text.replace(",", " , ").split()
    ]


def chunks(
    text: str, embeddings: dict[str, int] | None = None, *, size: int = CHUNK, backtrack: int = 20
) -> tuple[Chunk, ...]:
    (line,) = parse(text).at(0, 1)
    return split(line, tokenize, embeddings, size=size, backtrack=backtrack)


def numbers(first: int, last: int) -> str:
    return " ".join(map(str, range(first, last + 1)))


def ids(found: Sequence[Chunk]) -> list[list[int]]:
    return [list(chunk.ids) for chunk in found]


def test_every_token_carries_its_weight() -> None:
    (chunk,) = chunks("10 (11 12:1.5), [13]")
    assert chunk.ids == (10, 11, 12, COMMA, 13)
    assert chunk.weights == (1.0, 1.5, 1.5, 1.0, 1 / 1.1)


def test_a_long_prompt_goes_on_in_the_next_chunk() -> None:
    assert ids(chunks(numbers(101, 175))) == [list(range(101, 176))]
    assert ids(chunks(numbers(101, 176))) == [list(range(101, 176)), [176]]
    assert [len(chunk.ids) for chunk in chunks(numbers(101, 300))] == [75, 75, 50]


def test_an_empty_prompt_is_one_empty_chunk() -> None:
    assert chunks("") == chunks("()") == (Chunk(),)


def test_the_count_is_told() -> None:
    assert token_count(chunks(numbers(101, 183))) == "83 of 150 tokens, 2 chunks"
    assert token_count(chunks("10 BREAK 11")) == "76 of 150 tokens, 2 chunks"
    assert token_count(chunks("")) == "0 of 75 tokens, 1 chunk"


@pytest.mark.parametrize("behind", range(22))
def test_a_full_chunk_ends_at_a_comma_among_its_last_20(behind: int) -> None:
    """`behind` words stand between the comma and the end of the first 75."""
    before = 74 - behind
    text = f"{numbers(101, 100 + before)}, {numbers(201, 200 + behind)} {numbers(301, 310)}"
    first, second = ids(chunks(text))
    moved = behind if behind < 20 else 0
    assert len(first) == 75 - moved
    assert second == [*range(201 + behind - moved, 201 + behind), *range(301, 311)]


def test_a_prompt_that_just_fits_is_not_broken() -> None:
    assert len(chunks(f"{numbers(101, 170)}, 201 202 203 204")) == 1


def test_the_comma_rule_as_users_know_it() -> None:
    last_comma = chunks(f"{numbers(101, 160)}, 201 202, {numbers(301, 320)}")
    assert ids(last_comma)[1][0] == 301
    brim = chunks(f"{numbers(101, 160)}, {numbers(301, 320)}", backtrack=0)
    assert ids(brim)[1][0] == 315
    # a comma that is itself the 76th token opens the next chunk, even if another is near
    assert ids(chunks(f"{numbers(101, 160)}, {numbers(201, 214)}, 301"))[1] == [COMMA, 301]


def test_break_begins_a_chunk() -> None:
    assert ids(chunks("10 BREAK 11")) == [[10], [11]]
    assert ids(chunks("BREAK 10 BREAK BREAK 11 BREAK")) == [[], [10], [], [11]]
    assert ids(chunks(f"{numbers(101, 175)} BREAK 11")) == [list(range(101, 176)), [11]]
    assert ids(chunks(f"10, BREAK {numbers(101, 180)}"))[1] == list(range(101, 176))  # that comma is gone


def test_embeddings_take_the_place_of_their_names() -> None:
    (chunk,) = chunks("10 (Easy Negative:1.2), 11", {"easy negative": 3, "easy": 2})
    assert chunk.ids == (10, 0, 0, 0, COMMA, 11)
    assert chunk.weights == (1.0, 1.2, 1.2, 1.2, 1.0, 1.0)
    assert chunk.embeddings == ((1, "easy negative"),)  # the longest name
    (chunk,) = chunks("easy easy negativ", {"easy negative": 3, "easy": 2})
    assert chunk.embeddings == ((0, "easy"), (2, "easy"))


def test_an_embedding_is_never_divided() -> None:
    first, second = chunks(f"{numbers(101, 170)} easy 11", {"easy": 6})
    assert first.ids == tuple(range(101, 171))
    assert second.ids == (*[0] * 6, 11)
    assert second.embeddings == ((0, "easy"),)
    # one behind a comma moves as a whole, and where it stands in its new chunk is told anew
    first, second = chunks(f"{numbers(101, 164)}, 201 easy 202 203 204 205", {"easy": 6})
    assert (len(first.ids), second.ids) == (65, (201, *[0] * 6, 202, 203, 204, 205))
    assert second.embeddings == ((1, "easy"),)
    assert len(chunks("10 easy 11", {"easy": 75})) == 3
    with pytest.raises(RequestError, match="'easy' has 76 vectors, and a chunk holds 75"):
        chunks("easy", {"easy": 76})
    assert chunks("10", {"easy": 76}) == chunks("10")


WORDS = st.lists(st.sampled_from(["10", "11", ",", "easy", "easy on", "on", "BREAK"]), max_size=60)


@settings(max_examples=40, deadline=None)
@given(WORDS, st.integers(4, 12), st.integers(0, 12))
def test_nothing_is_lost_and_no_chunk_is_too_long(words: list[str], size: int, backtrack: int) -> None:
    embeddings = {"easy": 3, "easy on": 4}
    text = " ".join(words)
    found = chunks(text, embeddings, size=size, backtrack=backtrack)
    assert all(len(chunk.ids) == len(chunk.weights) <= size for chunk in found)
    whole = [chunks(run, embeddings, size=10_000) for run in text.split("BREAK")]
    assert [token for chunk in found for token in chunk.ids] == [
        token for (chunk,) in whole for token in chunk.ids
    ]
    names = [name for chunk in found for _, name in chunk.embeddings]
    assert names == [name for (chunk,) in whole for _, name in chunk.embeddings]
    for chunk in found:
        for start, name in chunk.embeddings:
            assert chunk.ids[start : start + embeddings[name]] == (0,) * embeddings[name]


def test_long_prompts_are_cut_quickly() -> None:
    text = "word, " * 5_000 + "easy " * 2_000
    assert len(chunks(text, {f"easy {'x ' * n}": 2 for n in range(20)} | {"easy": 4})) > 200


def test_what_clip_is_given() -> None:
    tokenizer = CLIPTokenizer()
    (line,) = parse("a bad-hands-5, (Cat:1.3)").at(0, 1)
    (chunk,) = split(line, tokenizer.encode, {"bad-hands-5": 2, "bad": 1})
    assert chunk.ids == (320, 0, 0, 267, 2368)
    assert chunk.embeddings == ((1, "bad-hands-5"),)
    framed, weights = frame(chunk, bos=BEGIN, eos=END, pad=END)
    assert framed == tokenizer.frame(chunk.ids)[0]
    assert len(framed) == len(weights) == 77
    assert [weight for weight in weights if weight != 1] == [weights[framed.index(2368)]] == [1.3]
    assert frame(Chunk(), bos=7, eos=8, pad=9, size=3) == ([7, 8, 9, 9, 9], [1.0] * 5)
    long = ", ".join(["a cat"] * 40)
    (line,) = parse(long).at(0, 1)
    assert [len(chunk.ids) for chunk in split(line, tokenizer.encode)] == [75, 44]


Z = torch.tensor([[[1.0, 2.0], [3.0, -2.0]], [[1.0, 1.0], [4.0, 2.0]]])
W = torch.tensor([[1.0, 2.0], [3.0, 0.5]])
EMPTY = torch.tensor([[[1.0, 0.0], [2.0, 2.0]]])


def test_plain_multiplies() -> None:
    assert plain(Z, W).tolist() == [[[1, 2], [6, -4]], [[3, 3], [2, 1]]]


def test_mean_keeps_the_mean_of_each_row() -> None:
    # row 0: mean 1, then 5/4; row 1: mean 2, then 9/4
    expected = [[[0.8, 1.6], [4.8, -3.2]], [[24 / 9, 24 / 9], [16 / 9, 8 / 9]]]
    torch.testing.assert_close(mean(Z, W), torch.tensor(expected))
    torch.testing.assert_close(mean(Z, W).mean((1, 2)), Z.mean((1, 2)))
    torch.testing.assert_close(mean(Z[1:], W[1:]), mean(Z, W)[1:])  # alone as in a batch


def test_a_mean_of_zero_is_not_divided_by() -> None:
    assert torch.equal(mean(Z, torch.zeros(2, 2)), torch.zeros(2, 2, 2))
    assert mean(Z[:1], torch.tensor([[-1.0, 3.0]])).isfinite().all()  # -3 + 3 = 0


def test_comfy_moves_away_from_the_empty_prompt() -> None:
    assert comfy(Z, W, EMPTY).tolist() == [[[1, 2], [4, -6]], [[1, 3], [3, 2]]]
    torch.testing.assert_close(comfy(Z, W, EMPTY.expand(2, 2, 2)), comfy(Z, W, EMPTY))


def test_conventions_by_name() -> None:
    expected = {"mean": mean(Z, W), "plain": plain(Z, W), "comfy": comfy(Z, W, EMPTY), "ignore": Z}
    assert tuple(expected) == EMPHASES
    for name, context in expected.items():
        assert torch.equal(emphasise(name, Z, W, EMPTY), context)
    with pytest.raises(RequestError, match='did you mean "comfy"'):
        emphasise("comfi", Z, W)
    with pytest.raises(RequestError, match="needs the encoded empty prompt"):
        emphasise("comfy", Z, W)


@pytest.mark.parametrize("name", EMPHASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_one_change_nothing_and_types_stay(name: str, dtype: torch.dtype) -> None:
    z = torch.randn(2, 77, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    empty: Tensor = z[:1] + 1
    assert torch.equal(emphasise(name, z, torch.ones(2, 77), empty), z)
    weights = torch.ones(2, 77)
    weights[0, 3] = 1.3
    moved = emphasise(name, z, weights, empty)
    assert moved.dtype == dtype
    assert torch.equal(moved[0], z[0]) == (name == "ignore")
    if name != "mean":
        assert torch.equal(moved[1], z[1])
        assert torch.equal(moved[0, 4:], z[0, 4:])
