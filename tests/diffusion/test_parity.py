"""Step-by-step agreement with the schedulers of `diffusers`, the test oracle: the same network, the same
noise, every x.

Each case names a published scheduler and the path, grid, prediction and sampler that say the same thing here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from limner.diffusion import grids, predictions, samplers
from limner.diffusion.grids import Grid
from limner.diffusion.paths import FlowPath, Path, VEPath, VPPath, shift
from limner.diffusion.predictions import Denoise

pytestmark = [
    pytest.mark.parity,
    # numpy 2 about the reference's np.array(tensor)
    pytest.mark.filterwarnings(
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    ),
]

TOLERANCE = 1e-4  # of the largest value, in float32
STEPS = 20  # divides 1000, as DDIM assumes; linspace falls between whole timesteps
SHAPE = (2, 3, 4, 4)

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDPM = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
V = {"prediction_type": "v_prediction"}
ZERO = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **V}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

VP = VPPath.scaled_linear()
VP_ZERO = VP.zero_terminal_snr()
# Where the reference would divide by alpha = 0 it puts 2^-12 instead.
VP_NEAR_ZERO = VPPath(torch.cat([VP_ZERO.alphas[:-1], torch.tensor([2.0**-12], dtype=torch.float64)]))
STRAIGHT = FlowPath()


def network(x: Tensor, timestep: Tensor) -> Tensor:
    """Anything smooth that depends on every input."""
    phase = 2 * (timestep.float() / 1000).reshape(-1, 1, 1, 1)
    return 0.8 * torch.sin(x + phase) + 0.1 * x.mean(-1, keepdim=True)


def thousandfold(t: Tensor) -> Tensor:
    return 1000 * t


def whole_thousandths(t: Tensor) -> Tensor:
    return (1000 * t + 1e-3).floor()


def truncated(t: Tensor) -> Tensor:
    """The reference truncates timesteps it computed in float32, where the first, 999, came out a hair
    below."""
    return (t - 1e-3).clamp(min=0).floor()


eps, v = partial(predictions.eps, network), partial(predictions.v, network)
flow = partial(predictions.flow, network, timestep=thousandfold)


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    reference: str  # the class
    config: dict[str, Any]
    path: Path
    grid: Callable[[Any], Grid]  # of the reference, once its timesteps are set; most need only the path
    denoise: Callable[[Path], Denoise]
    sampler: Callable[..., Any]
    divided: bool = False  # the reference keeps x / alpha
    step: dict[str, Any] = field(default_factory=dict)  # further arguments of its step()
    noise_of_pairs: bool = False  # it draws one noise for both halves of a double step


def vp(name: str, reference: str, grid: Callable[[Path], Grid], sampler: Any, **more: Any) -> Case:
    path, config = more.pop("path", VP), {**more.pop("betas", SD), **more.pop("config", {})}
    return Case(
        name=name, reference=reference, config=config, path=path, sampler=sampler,
        grid=more.pop("given", lambda _: grid(path)), denoise=more.pop("denoise", eps), **more,
    )  # fmt: skip


def linspace(path: Path) -> Grid:
    return grids.linspace(path, STEPS)


def whole(path: Path) -> Grid:
    return grids.uniform(path, STEPS, whole=True)


def whole_linspace(path: Path) -> Grid:
    return grids.linspace(path, STEPS, whole=True)


def leading(path: VPPath) -> Grid:
    return grids.leading(path, STEPS, offset=1)


def leading_less_one(path: VPPath) -> Grid:
    """As the multistep solvers count it: one more step, whose last is left out."""
    stride = path.steps // (STEPS + 1)
    return grids.custom(path, [stride * i + 1.0 for i in range(STEPS, 0, -1)])


def leading_to_first(path: VPPath) -> Grid:
    """Ends at the first entry of the table instead of the picture (Stable Diffusion's
    set_alpha_to_one=False)."""
    return grids.custom(path, [*grids.leading(path, STEPS, offset=1).t[:-1].tolist(), 0.0], clean=False)


def trailing(path: VPPath) -> Grid:
    return grids.trailing(path, STEPS)


def karras(path: Path) -> Grid:
    return grids.karras(path, STEPS)


def exponential(path: Path) -> Grid:
    return grids.exponential(path, STEPS)


def shifted_linspace(path: FlowPath, factor: float) -> Grid:
    """The reference shifts its smallest sigma, 1 / 1000, before it lays the grid, and then again with the
    grid."""
    low = shift(torch.tensor(path.end, dtype=torch.float64), factor).item()
    t = torch.linspace(1, low, STEPS, dtype=torch.float64)
    return grids.custom(path, shift(t, factor))


def solver_flow(path: FlowPath, factor: float) -> Grid:
    """The multistep solvers start a flow just below its noise, where log-SNR is finite."""
    t = 0.999 * (1 - torch.arange(STEPS, dtype=torch.float64) / STEPS)
    return grids.custom(path, shift(t, factor))


def unipc_flow(path: FlowPath, factor: float) -> Grid:
    t = shift(torch.linspace(1, 1e-3, STEPS + 1, dtype=torch.float64)[:-1], factor)
    t[0] -= 1e-6
    return grids.custom(path, t)


def timesteps_of(path: Path) -> Callable[[Any], Grid]:
    return lambda reference: grids.custom(path, reference.timesteps)


ddim_1, ddim_half = partial(samplers.ddim, eta=1.0), partial(samplers.ddim, eta=0.5)
two_s = partial(samplers.dpmpp_sde, eta=0.0)
solver, sde_solver = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
lower_last = {"lower_order_final": True}
no_clip = {"clip_sample": False}
rounded_eps = partial(predictions.eps, network, timestep=torch.round)
floored_eps = partial(predictions.eps, network, timestep=truncated)
floored_flow = partial(predictions.flow, network, timestep=whole_thousandths)


def bounded_eps(path: Path) -> Denoise:
    return predictions.consistency(eps(path))


def edm(_: Path) -> Denoise:
    return predictions.edm(network)


DDIM_CASES = [
    vp("leading", "DDIM", leading, samplers.ddim, config=no_clip | {"steps_offset": 1}),
    vp("leading-to-first", "DDIM", leading_to_first, samplers.ddim,
       config=no_clip | {"steps_offset": 1, "set_alpha_to_one": False}),
    vp("eta-half", "DDIM", leading, ddim_half, config=no_clip | {"steps_offset": 1}, step={"eta": 0.5}),
    vp("eta-one", "DDIM", trailing, ddim_1, config=no_clip | {"timestep_spacing": "trailing"},
       step={"eta": 1.0}),
    vp("euler", "DDIM", trailing, samplers.euler, config=no_clip | {"timestep_spacing": "trailing"}),
    vp("v-zero-snr", "DDIM", trailing, samplers.ddim, path=VP_ZERO, denoise=v, config=no_clip | ZERO),
    # At eta = 1 the reference takes the root of a rounding error below zero here; we do not.
    vp("v-zero-snr-eta", "DDIM", trailing, ddim_half, path=VP_ZERO, denoise=v, config=no_clip | ZERO,
       step={"eta": 0.5}),
    vp("linear", "DDIM", leading, samplers.ddim, path=VPPath.linear(), betas=DDPM,
       config=no_clip | {"steps_offset": 1}),
    vp("cosine", "DDIM", leading, samplers.ddim, path=VPPath.cosine(), betas=COSINE,
       config=no_clip | {"steps_offset": 1}),
]  # fmt: skip

DDPM_CASES = [
    vp("leading", "DDPM", leading, samplers.ddpm, config=no_clip | {"steps_offset": 1}),
    vp("linspace-v", "DDPM", whole_linspace, samplers.ddpm, denoise=v,
       config=no_clip | V | {"timestep_spacing": "linspace"}),
    vp("ancestral", "DDPM", trailing, samplers.euler_ancestral,
       config=no_clip | {"timestep_spacing": "trailing"}),
    vp("linear", "DDPM", leading, samplers.ddpm, path=VPPath.linear(), betas=DDPM,
       config=no_clip | {"steps_offset": 1}),
]  # fmt: skip

EULER_CASES = [
    vp("linspace", "EulerDiscrete", linspace, samplers.euler, divided=True),
    vp("leading", "EulerDiscrete", leading, samplers.euler, divided=True,
       config={"timestep_spacing": "leading", "steps_offset": 1}),
    vp("karras", "EulerDiscrete", karras, samplers.euler, divided=True, config={"use_karras_sigmas": True}),
    vp("exponential", "EulerDiscrete", exponential, samplers.euler, divided=True,
       config={"use_exponential_sigmas": True}),
    vp("v", "EulerDiscrete", linspace, samplers.euler, divided=True, denoise=v, config=V),
    vp("v-zero-snr", "EulerDiscrete", trailing, samplers.euler, divided=True, denoise=v, path=VP_NEAR_ZERO,
       config=ZERO),
    vp("linspace", "EulerAncestralDiscrete", linspace, samplers.euler_ancestral, divided=True),
    vp("trailing-v", "EulerAncestralDiscrete", trailing, samplers.euler_ancestral, divided=True, denoise=v,
       config=V | {"timestep_spacing": "trailing"}),
    vp("v-zero-snr", "EulerAncestralDiscrete", trailing, samplers.euler_ancestral, divided=True, denoise=v,
       path=VP_NEAR_ZERO, config=ZERO),
    vp("linspace", "HeunDiscrete", linspace, samplers.heun, divided=True),
    vp("karras", "HeunDiscrete", karras, samplers.heun, divided=True, config={"use_karras_sigmas": True}),
    vp("karras-v", "HeunDiscrete", karras, samplers.heun, divided=True, denoise=v,
       config=V | {"use_karras_sigmas": True}),
]  # fmt: skip

SOLVER_CASES = [
    *(
        vp(f"{label}-{name}", reference, grid, sampler, config=config | more, **rest)
        for reference, label, sampler, config in [
            ("DPMSolverMultistep", "2m", samplers.dpmpp_2m, solver),
            ("DPMSolverMultistep", "2m-sde", samplers.dpmpp_2m_sde, sde_solver),
            ("UniPCMultistep", "unipc", samplers.unipc, {}),
        ]
        for name, grid, more, rest in [
            ("linspace", whole, {}, {}),
            ("leading", leading_less_one, {"timestep_spacing": "leading", "steps_offset": 1}, {}),
            ("trailing-v", trailing, V | {"timestep_spacing": "trailing"}, {"denoise": v}),
            ("karras", karras, {"use_karras_sigmas": True}, {"denoise": rounded_eps}),
            ("exponential", exponential, {"use_exponential_sigmas": True}, {"denoise": floored_eps}),
            ("v-zero-snr", trailing, ZERO, {"denoise": v, "path": VP_NEAR_ZERO}),
        ]
    ),
    vp("2s", "DPMSolverSinglestep", whole, two_s, config=solver | lower_last),
    vp("2s-karras", "DPMSolverSinglestep", karras, two_s, denoise=rounded_eps,
       config=solver | lower_last | {"use_karras_sigmas": True}),
    vp("2s-sde", "DPMSolverSinglestep", whole, samplers.dpmpp_sde, config=sde_solver | lower_last,
       noise_of_pairs=True),
    *(
        vp(name, "DPMSolverSDE", lambda path, grid=grid: grids.with_midpoints(path, grid(path)),
           samplers.dpmpp_sde,
           divided=True, config=config, denoise=denoise, noise_of_pairs=True)
        for name, grid, config, denoise in [
            ("linspace", linspace, {}, eps), ("karras-v", karras, V | {"use_karras_sigmas": True}, v),
        ]
    ),
    vp("lcm", "LCM", leading, samplers.lcm, given=timesteps_of(VP), denoise=bounded_eps, config=no_clip),
]  # fmt: skip

FLOW_CASES = [
    Case(name=name, reference=reference, config=config, path=STRAIGHT, denoise=denoise, sampler=sampler,
         grid=lambda _, grid=grid: grid(STRAIGHT))
    for name, reference, config, grid, denoise, sampler in [
        ("euler", "FlowMatchEulerDiscrete", {}, linspace, flow, samplers.euler),
        ("euler-ddim", "FlowMatchEulerDiscrete", {}, linspace, flow, samplers.ddim),
        ("euler-shift", "FlowMatchEulerDiscrete", {"shift": 3.0}, partial(shifted_linspace, factor=3.0), flow,
         samplers.euler),
        ("euler-karras", "FlowMatchEulerDiscrete", {"use_karras_sigmas": True}, karras, flow, samplers.euler),
        ("euler-exponential", "FlowMatchEulerDiscrete", {"use_exponential_sigmas": True}, exponential, flow,
         samplers.euler),
        ("lcm", "FlowMatchEulerDiscrete", {"stochastic_sampling": True}, linspace, flow, samplers.lcm),
        ("lcm-shift", "FlowMatchLCM", {"shift": 3.0}, partial(shifted_linspace, factor=3.0), flow,
         samplers.lcm),
        ("heun", "FlowMatchHeunDiscrete", {}, linspace, flow, samplers.heun),
        ("heun-shift", "FlowMatchHeunDiscrete", {"shift": 3.0}, partial(shifted_linspace, factor=3.0), flow,
         samplers.heun),
        ("2m-shift", "DPMSolverMultistep", solver | FLOW | {"flow_shift": 3.0},
         partial(solver_flow, factor=3.0), floored_flow, samplers.dpmpp_2m),
        ("2m-sde-shift", "DPMSolverMultistep", sde_solver | FLOW | {"flow_shift": 3.0},
         partial(solver_flow, factor=3.0), floored_flow, samplers.dpmpp_2m_sde),
        ("2s-shift", "DPMSolverSinglestep", solver | lower_last | FLOW | {"flow_shift": 3.0},
         partial(solver_flow, factor=3.0), floored_flow, two_s),
        ("unipc-shift", "UniPCMultistep", FLOW | {"flow_shift": 3.0}, partial(unipc_flow, factor=3.0),
         floored_flow,
         samplers.unipc),
    ]
]  # fmt: skip

EDM_CASES = [
    Case(name=name, reference=reference, config={"sigma_schedule": schedule, **config}, path=VEPath(),
         grid=lambda _, grid=grid: grid(VEPath()), denoise=edm, sampler=sampler)
    for name, reference, config, schedule, grid, sampler in [
        ("karras", "EDMEuler", {}, "karras", karras, samplers.euler),
        ("exponential", "EDMEuler", {}, "exponential", exponential, samplers.euler),
        ("2m", "EDMDPMSolverMultistep", solver, "karras", karras, samplers.dpmpp_2m),
        ("2m-sde", "EDMDPMSolverMultistep", sde_solver, "karras", karras, samplers.dpmpp_2m_sde),
    ]
]  # fmt: skip

CASES = DDIM_CASES + DDPM_CASES + EULER_CASES + SOLVER_CASES + FLOW_CASES + EDM_CASES


def noise(index: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(1000 + index))


def noise_of_pairs(grid: Grid) -> Callable[[int], Tensor]:
    """The one noise of a double step i - 1 -> i + 1 whose halves draw noise(i - 1) and noise(i): both carried
    to the end of the step, where the reverse SDE has shrunk the first by exp(-h), h the log-SNR / 2 gained in
    the second half."""
    lam = (grid.alpha / grid.sigma).log().tolist()

    def draw(index: int) -> Tensor:
        if index % 2 == 0 or index + 1 == grid.steps:
            return noise(index)
        first, second = lam[index] - lam[index - 1], lam[index + 1] - lam[index]
        early = math.exp(-second) * math.sqrt(-math.expm1(-2 * first))
        late = math.sqrt(-math.expm1(-2 * second))
        return (early * noise(index - 1) + late * noise(index)) / math.hypot(early, late)

    return draw


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.reference}-{case.name}")
def test_every_x_agrees_with_the_reference(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = getattr(diffusers, f"{case.reference}Scheduler")(**case.config)
    reference.set_timesteps(STEPS)
    grid = case.grid(reference)
    start = grid.sigma[0].item() * noise(-1)
    expected = reference_steps(case, reference, grid, start, monkeypatch)

    steps = list(case.sampler(case.denoise(case.path), start, grid, noise=noise))

    assert len(steps) == grid.steps == len(expected)
    for ours, theirs in zip(steps, expected, strict=True):
        difference = (ours.x - theirs).abs().max() / theirs.abs().max()
        assert difference <= TOLERANCE, f"step {ours.index} of {ours.total}: {difference:.1e}"


def reference_steps(
    case: Case, reference: Any, grid: Grid, start: Tensor, monkeypatch: pytest.MonkeyPatch
) -> list[Tensor]:
    """Every x the reference reaches at a node of the grid, as alpha x0 + sigma eps."""
    draws = noise_of_pairs(grid) if case.noise_of_pairs else noise
    index = 0
    module = type(reference).__module__
    if hasattr(reference, "noise_sampler"):
        reference.noise_sampler = lambda *_: draws(index)
    else:
        monkeypatch.setattr(f"{module}.randn_tensor", lambda *_, **__: draws(index), raising=False)

    scale = grid.alpha.tolist() if case.divided else [1.0] * (grid.steps + 1)
    x, reached = start / scale[0], []
    twice = "Heun" in case.reference  # it is called twice for each step but the last
    for call, timestep in enumerate(reference.timesteps):
        index = (call + 1) // 2 if twice else call
        asked = reference.scale_model_input(x, timestep) if hasattr(reference, "scale_model_input") else x
        prediction = network(asked, torch.as_tensor(timestep).expand(len(x)))
        x = reference.step(prediction, timestep, x, return_dict=False, **case.step)[0]
        if not twice or call % 2 == 1 or call + 1 == len(reference.timesteps):
            reached.append(x * scale[len(reached) + 1])
    return reached


def test_the_karras_timesteps_are_those_of_the_reference() -> None:
    reference = diffusers.EulerDiscreteScheduler(**SD, use_karras_sigmas=True)
    reference.set_timesteps(30)
    ours = grids.karras(VP, 30)
    # Between whole steps it interpolates log(sigma / alpha), we the chord: a twentieth of a step at most.
    torch.testing.assert_close(ours.t[:-1].float(), reference.timesteps, rtol=0, atol=0.05)
    torch.testing.assert_close((ours.sigma / ours.alpha).float(), reference.sigmas, rtol=1e-4, atol=0)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("betas, path", [(SD, VP), (DDPM, VPPath.linear()), (COSINE, VPPath.cosine())])
def test_tables_are_those_of_the_reference(betas: dict[str, Any], path: VPPath, zero_snr: bool) -> None:
    reference = diffusers.DDIMScheduler(**betas, rescale_betas_zero_snr=zero_snr)
    ours = path.zero_terminal_snr() if zero_snr else path
    # float32 in the reference; at the far end of a stretched table it keeps three digits
    torch.testing.assert_close(ours.alphas.float(), reference.alphas_cumprod.sqrt(), rtol=2e-3, atol=2e-6)


def test_every_sampler_is_compared() -> None:
    compared = {case.sampler.func if isinstance(case.sampler, partial) else case.sampler for case in CASES}
    assert compared == set(samplers.SAMPLERS.values())
    assert len({(case.reference, case.name) for case in CASES}) == len(CASES)
