"""Schedules, targets and samplers: against diffusers, against each other, and by hand."""

import math

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchword import diffuse
from patchword.diffuse import Sampling, Step, between, bounded, guided, sample, spaced
from patchword.errors import ConfigError

KINDS = ("noise", "picture", "velocity")


def double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (diffuse.linear_schedule, {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}),
        (
            diffuse.scaled_linear_schedule,
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        ),
        (diffuse.cosine_schedule, {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
@pytest.mark.parametrize("steps", [1000, 50])
def test_schedules_equal_those_of_diffusers(ours, theirs, steps):
    reference = diffusers.DDPMScheduler(num_train_timesteps=steps, **theirs).alphas_cumprod
    assert torch.allclose(ours(steps).kept_T, reference.double(), rtol=0, atol=1e-6)


def test_noised_pictures_have_the_moments_of_the_forward_process():
    schedule = diffuse.cosine_schedule(100)
    pictures, times_B = torch.full((4, 1, 64, 64), 0.5), torch.tensor([0, 30, 60, 99])
    noisy = diffuse.noised(schedule, pictures, double(4, 1, 64, 64).float(), times_B)
    kept_B = schedule.kept_T[times_B].float()
    assert torch.allclose(noisy.mean((1, 2, 3)), 0.5 * kept_B.sqrt(), atol=0.05)
    assert torch.allclose(noisy.var((1, 2, 3)), 1 - kept_B, atol=0.05)


@given(st.integers(0, 998), st.sampled_from(KINDS))
@settings(max_examples=30, deadline=None)
def test_every_target_gives_picture_and_noise_back(time, kind):
    schedule, times_B = diffuse.cosine_schedule(), torch.full((2,), time)
    pictures, noise = double(2, 3, 4, 4), double(2, 3, 4, 4, seed=1)
    noisy = diffuse.noised(schedule, pictures, noise, times_B)
    target = diffuse.target_of(schedule, kind, pictures, noise, times_B)
    found = diffuse.to_picture(schedule, kind, target, noisy, times_B)
    assert torch.allclose(found, pictures, atol=1e-6)
    assert torch.allclose(diffuse.to_noise(schedule, found, noisy, times_B), noise, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_ddim_with_the_true_noise_recovers_the_picture(kind, steps):
    schedule, pictures, noise = (
        diffuse.cosine_schedule(),
        double(2, 3, 8, 8).clamp(-1, 1),
        double(2, 3, 8, 8, seed=1),
    )
    times = spaced(schedule, steps)
    noisy = diffuse.noised(schedule, pictures, noise, torch.full((2,), times[0]))

    def oracle(now, times_B):
        return diffuse.target_of(
            schedule, kind, pictures, diffuse.to_noise(schedule, pictures, now, times_B), times_B
        )

    *_, found = sample(oracle, schedule, noisy, times, Sampling(kind))
    assert torch.allclose(found, pictures, atol=1e-6)


def network(noisy: torch.Tensor, times_B: torch.Tensor, told: torch.Tensor) -> torch.Tensor:
    """Something that depends on everything, and learns a variance."""
    mean = torch.tanh(noisy * told.view(-1, 1, 1, 1) + times_B.view(-1, 1, 1, 1) / 1000)
    return torch.cat([mean, mean.sin()], 1)


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_sampling_equals_diffusers_step_by_step(method):
    """Both are given the same times: every 20th one, as diffusers' "leading" spacing has them."""
    options = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon", "clip_sample": True}
    if method == "ddim":
        theirs = diffusers.DDIMScheduler(**options, set_alpha_to_one=True)
    else:
        theirs = diffusers.DDPMScheduler(**options, variance_type="fixed_small")
    theirs.set_timesteps(50)
    times = theirs.timesteps.tolist()
    noise, told = double(2, 3, 8, 8).float(), torch.tensor([0.3, -0.7])
    schedule = diffuse.cosine_schedule()

    def denoise(noisy, times_B):
        return network(noisy, times_B, told)[:, :3]

    fresh = torch.Generator().manual_seed(5)
    draw = lambda: torch.randn(2, 3, 8, 8, generator=fresh)  # noqa: E731
    *_, ours = sample(denoise, schedule, noise, times, Sampling("noise", method), draw)
    reference, generator = noise, torch.Generator().manual_seed(5)
    for time in times:
        more = {"use_clipped_model_output": True} if method == "ddim" else {"generator": generator}
        reference = theirs.step(
            denoise(reference, torch.full((2,), time)), time, reference, **more
        ).prev_sample
    assert torch.allclose(ours, reference, atol=2e-5)


def test_ddim_with_all_noise_is_ddpm():
    schedule, times = diffuse.cosine_schedule(), spaced(diffuse.cosine_schedule(), 20)
    noise, told = double(2, 3, 8, 8), torch.tensor([0.3, -0.7]).double()
    found = []
    for how in (Sampling("noise", "ddim", eta=1.0), Sampling("noise", "ddpm")):
        fresh = torch.Generator().manual_seed(2)
        draw = lambda fresh=fresh: torch.randn(2, 3, 8, 8, generator=fresh, dtype=torch.float64)  # noqa: E731
        *_, last = sample(lambda x, t: network(x, t, told)[:, :3], schedule, noise, times, how, draw)
        found.append(last)
    assert torch.allclose(*found, atol=1e-9)


def test_guidance_of_one_is_conditional_and_of_zero_unconditional_bit_for_bit():
    noisy, times_B = double(2, 3, 4, 4).float(), torch.tensor([10, 700])
    text, nothing = torch.tensor([0.4, 1.3]), torch.tensor([-0.2, -0.2])
    assert torch.equal(guided(network, text, nothing, 1)(noisy, times_B), network(noisy, times_B, text))
    assert torch.equal(guided(network, text, nothing, 0)(noisy, times_B), network(noisy, times_B, nothing))


def test_guidance_in_one_pass_equals_two_passes_and_keeps_the_variance_of_the_text():
    noisy, times_B = double(2, 3, 4, 4), torch.tensor([10, 700])
    text, nothing = torch.tensor([0.4, 1.3]).double(), torch.tensor([-0.2, -0.2]).double()
    found = guided(network, text, nothing, 3.5)(noisy, times_B)
    with_text, without = network(noisy, times_B, text), network(noisy, times_B, nothing)
    assert torch.allclose(found[:, :3], without[:, :3] + 3.5 * (with_text - without)[:, :3], atol=1e-12)
    assert torch.equal(found[:, 3:], with_text[:, 3:])


def test_dynamic_threshold_is_the_cut_within_bounds_and_divides_beyond():
    pictures = torch.tensor([[-0.5, 0.2, 0.9, 1.0], [-4.0, 2.0, 1.0, 0.0]]).view(2, 1, 2, 2)
    found = bounded(pictures, 1.0)
    assert torch.equal(found[0], pictures[0]) and torch.equal(found[0], bounded(pictures, None)[0])
    assert torch.allclose(found[1].flatten(), torch.tensor([-1.0, 0.5, 0.25, 0.0]))
    assert torch.equal(bounded(pictures, None)[1].flatten(), torch.tensor([-1.0, 1.0, 1.0, 0.0]))


def test_a_learnt_variance_lies_between_both_bounds():
    step = Step(kept=0.5, before=0.8)
    ends = step.log_variance(torch.tensor([-1.0, 1.0]))
    assert torch.allclose(ends.exp(), torch.tensor([step.smaller_variance, step.beta]))
    assert step.smaller_variance == pytest.approx((1 - 0.8) / (1 - 0.5) * (1 - 0.5 / 0.8))


def test_the_variational_bound_by_hand():
    """A right picture with the true variance has no divergence; at time 0 it is a density."""
    schedule, times_B = diffuse.linear_schedule(10, 0.01, 0.3), torch.tensor([0, 4])
    pictures, noise = double(2, 1, 2, 2), double(2, 1, 2, 2, seed=1)
    noisy = diffuse.noised(schedule, pictures, noise, times_B)
    bound = diffuse.variational_bound(
        schedule, pictures, pictures, torch.full_like(pictures, -1), noisy, times_B
    )
    first = Step(float(schedule.kept_T[1]), float(schedule.kept_T[0])).smaller_variance
    assert bound[0].item() == pytest.approx(0.5 * math.log(2 * math.pi * first) / math.log(2))
    assert bound[1].item() == pytest.approx(0, abs=1e-9)
    wrong = diffuse.variational_bound(
        schedule, pictures, pictures + 0.1, torch.full_like(pictures, -1), noisy, times_B
    )
    step = Step(float(schedule.kept_T[4]), float(schedule.kept_T[3]))
    gap = 0.1 * math.sqrt(step.before) * step.beta / (1 - step.kept)
    assert wrong[1].item() == pytest.approx(gap**2 / step.smaller_variance / 2 / math.log(2))


def test_inversion_comes_back_to_the_picture():
    """With one noise for all times, as a perfect denoiser of one picture has, DDIM is exact both ways."""
    schedule, noise = diffuse.cosine_schedule(), double(2, 3, 4, 4, seed=1)
    times = spaced(schedule, 40)
    denoise = lambda noisy, times_B: noise  # noqa: E731
    start = diffuse.noised(schedule, double(2, 3, 4, 4).clamp(-1, 1), noise, torch.full((2,), times[-1]))
    found = diffuse.inverted(denoise, schedule, start, times, "noise")
    *_, last = sample(denoise, schedule, found, times, Sampling("noise", bound=False))
    back = diffuse.noised(schedule, last, noise, torch.full((2,), times[-1]))
    assert torch.allclose(back, start, atol=1e-6)


def test_the_way_between_two_points_of_a_sphere_stays_on_it():
    first, second = torch.eye(3)[:1], torch.eye(3)[1:2]
    assert torch.allclose(between(first, second, 0.5), torch.tensor([[0.5**0.5, 0.5**0.5, 0]]), atol=1e-6)
    assert torch.allclose(between(first, second, 0.0), first, atol=1e-6)


@pytest.mark.parametrize("steps", [0, 51])
def test_more_steps_than_times_are_refused(steps):
    with pytest.raises(ConfigError, match=f"steps is {steps}: expected a whole number from 1 to 50"):
        spaced(diffuse.cosine_schedule(50), steps)
