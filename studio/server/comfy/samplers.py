"""ComfyUI's names of samplers and schedulers, and Studio's.

ComfyUI has the sampler and the spacing of the noise levels apart, Studio has both in one name. `normal`, `simple` and
`sgm_uniform` are the spacing with which a model was published.

Try it: ``sampler_of("dpmpp_2m", "karras")`` is ``"dpmpp-2m-karras"``
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studio.server.catalogue import Choice

SAMPLERS = {
    "euler": "euler", "euler_ancestral": "euler-a", "heun": "heun", "dpm_2": "dpm2", "dpm_2_ancestral": "dpm2-a",
    "lms": "lms", "dpmpp_2m": "dpmpp-2m", "dpmpp_2m_sde": "dpmpp-2m-sde", "dpmpp_3m_sde": "dpmpp-3m-sde",
    "dpmpp_sde": "dpmpp-sde", "ddpm": "ddpm", "lcm": "lcm", "deis": "deis", "ddim": "ddim", "uni_pc": "unipc",
    "uni_pc_bh2": "unipc", "sa_solver": "sa-solver",
}  # fmt: skip
SCHEDULERS = {"normal": "", "karras": "karras", "exponential": "exponential", "sgm_uniform": "", "simple": "",
              "beta": "beta"}  # fmt: skip


def sampler_of(sampler: str, scheduler: str) -> str:
    """Studio's name for a sampler and a scheduler, both known."""
    return "-".join(filter(None, (SAMPLERS[sampler], SCHEDULERS[scheduler])))


def fitting(choice: Choice, values: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The samplers, and the schedulers with the first of them, that the declared inputs of a generator allow."""

    def fits(name: str) -> bool:
        return "sampler" not in choice.generator.Inputs.problems({**values, "sampler": name})

    samplers = [name for name in SAMPLERS if fits(sampler_of(name, "normal"))]
    return samplers, [name for name in SCHEDULERS if samplers and fits(sampler_of(samplers[0], name))]
