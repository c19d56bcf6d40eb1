from typing import NoReturn

import pytest
import torch
from torch import Tensor

from limner.diffusion import guidance
from limner.errors import RequestError

SHAPE = (3, 3, 8, 8)
GENERATOR = torch.Generator().manual_seed(0)
X, COND, UNCOND = (torch.randn(SHAPE, generator=GENERATOR) for _ in range(3))
T = torch.tensor([0.5, 0.5, 0.5])


def cond(x: Tensor, t: Tensor) -> Tensor:
    return COND


def uncond(x: Tensor, t: Tensor) -> Tensor:
    return UNCOND


def never(x: Tensor, t: Tensor) -> NoReturn:
    raise AssertionError("this branch must not be called")


BRANCHES = guidance.in_turn(cond, uncond)


def test_scale_one_is_the_prompt_and_zero_the_other_branch() -> None:
    torch.testing.assert_close(guidance.cfg(BRANCHES, 1.0)(X, T), COND)
    torch.testing.assert_close(guidance.cfg(BRANCHES, 0.0)(X, T), UNCOND)


def test_guidance_is_linear_in_the_scale() -> None:
    w = 6.5
    paper = (1 + w) * COND - w * UNCOND  # Ho & Salimans eq. 6
    torch.testing.assert_close(guidance.cfg(BRANCHES, 1 + w)(X, T), paper)


def test_equal_branches_are_unmoved_by_any_scale() -> None:
    for scale in (0.0, 3.0, 15.0):
        for rescale in (0.0, 0.7):
            guided = guidance.cfg(guidance.in_turn(cond, cond), scale, rescale=rescale)
            torch.testing.assert_close(guided(X, T), COND)


def test_both_branches_go_in_one_call_prompts_first() -> None:
    calls = []

    def both(x: Tensor, t: Tensor) -> Tensor:
        calls.append((x, t))
        return torch.cat([COND, UNCOND])

    t = torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(
        guidance.cfg(guidance.batched(both), 4.0)(X, t), guidance.cfg(BRANCHES, 4.0)(X, t)
    )
    [(x, t_seen)] = calls
    assert torch.equal(x, torch.cat([X, X]))
    assert torch.equal(t_seen, torch.cat([t, t]))


def test_rescale_brings_each_standard_deviation_back() -> None:
    def deviation(x: Tensor) -> Tensor:
        return x.flatten(1).std(1)

    plain = guidance.cfg(BRANCHES, 7.5)(X, T)
    full = guidance.cfg(BRANCHES, 7.5, rescale=1.0)(X, T)
    torch.testing.assert_close(deviation(full), deviation(COND))
    torch.testing.assert_close(
        full / plain, (full / plain)[:, :1, :1, :1].expand(SHAPE)
    )  # one factor for each
    torch.testing.assert_close(guidance.cfg(BRANCHES, 7.5, rescale=0.7)(X, T), 0.7 * full + 0.3 * plain)


def test_statistics_of_a_picture_do_not_depend_on_its_batch() -> None:
    def slices(i: int) -> guidance.Denoise:
        return guidance.cfg(lambda x, t: (COND[i : i + 1], UNCOND[i : i + 1]), 7.5, rescale=0.7)

    whole = guidance.dynamic_threshold(guidance.cfg(BRANCHES, 7.5, rescale=0.7))(X, T)
    for i in range(len(X)):
        assert torch.equal(guidance.dynamic_threshold(slices(i))(X[i : i + 1], T[:1])[0], whole[i])


def test_autoguidance_extrapolates_from_the_weak_network() -> None:
    torch.testing.assert_close(guidance.autoguidance(cond, uncond, 2.0)(X, T), 2 * COND - UNCOND)
    torch.testing.assert_close(guidance.autoguidance(cond, uncond, 1.0)(X, T), COND)


@pytest.mark.parametrize("t, inside", [(0.05, False), (0.1, True), (0.5, True), (0.9, True), (0.95, False)])
def test_interval_calls_only_the_branch_it_needs(t: float, inside: bool) -> None:
    times = torch.full((3,), t, dtype=torch.float64)
    guided, plain = (cond, never) if inside else (never, uncond)
    assert guidance.interval(guided, plain, 0.1, 0.9)(X, times) is (COND if inside else UNCOND)


def test_interval_picks_for_each_picture() -> None:
    mixed = guidance.interval(cond, uncond, 0.1, 0.9)(X, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(mixed, torch.stack([UNCOND[0], COND[1], UNCOND[2]]))


def test_static_threshold_clips() -> None:
    clipped = guidance.static_threshold(cond, 0.5)(X, T)
    assert torch.equal(clipped, COND.clamp(-0.5, 0.5))
    assert guidance.static_threshold(cond)(X, T).abs().max() == 1


def test_dynamic_threshold_by_hand() -> None:
    picture = torch.arange(-100.0, 101.0).reshape(1, 1, 1, 201) / 50  # absolute values up to 2
    result = guidance.dynamic_threshold(lambda x, t: picture, 0.9)(picture, T[:1])
    s = picture.abs().flatten().quantile(0.9)
    assert s == pytest.approx(1.8, abs=0.01)
    torch.testing.assert_close(result, (picture / s).clamp(-1, 1))


def test_dynamic_threshold_leaves_pictures_within_the_limit_alone() -> None:
    small = 0.9 * COND / COND.abs().amax()
    assert torch.equal(guidance.dynamic_threshold(lambda x, t: small)(X, T), small)
    mixed = torch.cat([small[:1], 5 * COND[1:]])
    result = guidance.dynamic_threshold(lambda x, t: mixed)(X, T)
    assert torch.equal(result[0], small[0])
    assert result.abs().flatten(1).amax(1)[1:] == pytest.approx(1)


def test_dynamic_threshold_to_another_limit() -> None:
    result = guidance.dynamic_threshold(lambda x, t: 10 * COND, limit=2.0)(X, T)
    assert result.abs().max().item() == pytest.approx(2)


@pytest.mark.parametrize(
    "build",
    [
        lambda: guidance.cfg(BRANCHES, 7.5, rescale=1.5),
        lambda: guidance.cfg(BRANCHES, 7.5, rescale=-0.1),
        lambda: guidance.interval(cond, uncond, 0.9, 0.1),
        lambda: guidance.static_threshold(cond, 0.0),
        lambda: guidance.dynamic_threshold(cond, 0.0),
        lambda: guidance.dynamic_threshold(cond, 1.1),
        lambda: guidance.dynamic_threshold(cond, 0.9, limit=-1.0),
    ],
)
def test_settings_out_of_range_are_refused_before_the_first_step(build: object) -> None:
    assert callable(build)
    with pytest.raises(RequestError):
        build()


def test_prompts_are_composed_by_their_weights() -> None:
    uncond, red, blue = (torch.full((1, 2), value) for value in (1.0, 2.0, 5.0))
    told = guidance.composed([red, blue], [1.0, 0.5], uncond)
    assert torch.equal(told, torch.full((1, 2), 1 + 1 * 1 + 0.5 * 4))
    assert torch.equal(guidance.composed([red], [1.0], uncond), red)


def test_what_is_kept_stays_known() -> None:
    known, mask = torch.zeros(1, 1, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    x0 = guidance.kept(lambda x, t: x + 3, known, mask)(torch.ones(2, 1, 2, 2), torch.zeros(2))
    assert torch.equal(x0[:, 0], torch.tensor([[4.0, 0.0], [0.0, 0.0]]).expand(2, 2, 2))


def test_dynamic_threshold_may_be_bounded_from_above() -> None:
    x0 = torch.tensor([[0.5, -4.0, 3.0, 0.0]])
    clipped = guidance.dynamic_threshold(lambda x, t: x0, 1.0, most=1.5)(x0, torch.zeros(1))
    torch.testing.assert_close(clipped, torch.tensor([[0.5 / 1.5, -1.0, 1.0, 0.0]]))
    only_clipped = guidance.dynamic_threshold(lambda x, t: x0, 1.0, most=1.0)(x0, torch.zeros(1))
    assert only_clipped.tolist() == [[0.5, -1.0, 1.0, 0.0]]
    with pytest.raises(RequestError, match="most not below"):
        guidance.dynamic_threshold(lambda x, t: x0, most=0.5)


def test_leaving_layers_out_adds_a_push_of_its_own_scale() -> None:
    reduced = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
    pushed = guidance.pushed(COND, reduced, 2.8 / 5.0)
    expected = UNCOND + 5.0 * (COND - UNCOND) + 2.8 * (COND - reduced)
    torch.testing.assert_close(guidance.cfg(lambda x, t: (pushed, UNCOND), 5.0)(X, T), expected)
