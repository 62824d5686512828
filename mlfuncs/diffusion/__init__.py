"""Diffusion models: noise schedules, preconditioning and training loss, deterministic and stochastic samplers."""

from mlfuncs.diffusion.gaussians import ancestral_transition, gaussian_log_prob, gaussian_score
from mlfuncs.diffusion.preconditioning import (
    edm_coefficients,
    edm_loss,
    preconditioned_denoise,
    sample_training_sigmas,
)
from mlfuncs.diffusion.samplers import (
    ddim_step,
    euler_step,
    ode_step,
    sample_euler,
    sample_heun,
    sample_heun_stochastic,
)
from mlfuncs.diffusion.schedules import (
    alpha_bar_from_sigma,
    alpha_bars,
    cosine_betas,
    denoised_from_noise,
    karras_sigmas,
    linear_betas,
    noise_from_denoised,
    scaled_linear_betas,
    sigma_from_alpha_bar,
    variance_exploding_from_preserving,
    variance_preserving_from_exploding,
    vp_sigma,
    vp_time,
)

__all__ = [
    "alpha_bar_from_sigma",
    "alpha_bars",
    "ancestral_transition",
    "cosine_betas",
    "ddim_step",
    "denoised_from_noise",
    "edm_coefficients",
    "edm_loss",
    "euler_step",
    "gaussian_log_prob",
    "gaussian_score",
    "karras_sigmas",
    "linear_betas",
    "noise_from_denoised",
    "ode_step",
    "preconditioned_denoise",
    "sample_euler",
    "sample_heun",
    "sample_heun_stochastic",
    "sample_training_sigmas",
    "scaled_linear_betas",
    "sigma_from_alpha_bar",
    "variance_exploding_from_preserving",
    "variance_preserving_from_exploding",
    "vp_sigma",
    "vp_time",
]
