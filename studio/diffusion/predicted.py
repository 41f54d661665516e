"""The clean sample that a denoising step predicted, for previews.

x_0 follows from the model's output by the scheduler's parametrisation: flow matching (Lipman et al. 2023), or epsilon,
v (Salimans and Ho 2022) and sample prediction, with the noisy sample as alpha * x_0 + sigma * noise.

Try it: ``pytest tests/studio/diffusion/test_predicted.py``
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from studio.diffusion.guest import Record


def predicted_sample(scheduler: Any, record: Record) -> Tensor:
    """x_0 as predicted in the step of a record; the next latents if the scheduler's parametrisation is not known."""
    output, timestep, sample = record.taken
    if not isinstance(output, Tensor) or not isinstance(sample, Tensor) or output.shape != sample.shape:
        return record.latents
    noisy, made = sample.float(), output.float()
    name, config = type(scheduler).__name__, scheduler.config
    if name.startswith("FlowMatch") or config.get("prediction_type") == "flow_prediction":
        sigma = _sigma(record)
        return record.latents if sigma is None else (noisy - sigma * made).to(record.latents.dtype)
    levels = _levels(scheduler, record, timestep)
    kind = config.get("prediction_type", "epsilon")
    if levels is None or kind not in ("epsilon", "v_prediction", "sample"):
        return record.latents
    alpha, sigma, scale = levels
    noisy = noisy * scale
    clean = {"epsilon": (noisy - sigma * made) / alpha, "v_prediction": alpha * noisy - sigma * made, "sample": made}
    return clean[kind].to(record.latents.dtype)


def _sigma(record: Record) -> float | None:
    """The noise level of the sample that the step was given, from the scheduler's list of them."""
    sigmas, index = record.solver.get("sigmas"), record.solver.get("_step_index")
    if sigmas is None or not isinstance(index, int) or not 0 < index <= len(sigmas):
        return None
    return float(sigmas[index - 1])


def _levels(scheduler: Any, record: Record, timestep: Any) -> tuple[float, float, float] | None:
    """(alpha, sigma, scale): the sample times scale is alpha * x_0 + sigma * noise, with alpha² + sigma² = 1."""
    sigma = _sigma(record)
    if sigma is not None:
        alpha = 1 / (sigma**2 + 1) ** 0.5
        scaled = hasattr(scheduler, "_sigma_to_alpha_sigma_t")  # solvers whose samples have unit variance
        return alpha, sigma * alpha, 1.0 if scaled else alpha
    bars = getattr(scheduler, "alphas_cumprod", None)
    if bars is None or timestep is None:
        return None
    at = int(timestep.reshape(-1)[0] if isinstance(timestep, Tensor) else timestep)
    if not 0 <= at < len(bars):
        return None
    bar = float(bars[at])
    return bar**0.5, (1 - bar) ** 0.5, 1.0
