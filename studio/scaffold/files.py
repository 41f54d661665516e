"""The files of a new plugin, as text: pyproject.toml, README.md, the package and its tests. Writes nothing."""

from __future__ import annotations

import keyword

from studio.hookspecs import API
from studio.scaffold.families import CONSTANTS, FAMILIES

_PYPROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{distribution}"
version = "0.1.0"
description = "{does}"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["multimodal-studio>=0.1", {needs}]

[project.entry-points."studio.plugins"]
{name} = "{package}"

[tool.setuptools]
packages = ["{package}"]
"""

_SIMPLE = '''\
"""The Studio plugin `{name}`: {does_lower}"""

from __future__ import annotations

import numpy as np

import studio

studio_api = {api}  # the version of the plugin contract that this plugin needs
{constants}

class {kind}(studio.Generator):
    """{does}"""

    name = "{name}"
    output = studio.{output}

    class Inputs(studio.Inputs):
        {inputs}

    def generate(self, model, inputs, rng):
        draw = np.random.default_rng(rng.seed)
{goal}        x = goal
        return {media}


@studio.hookimpl
def studio_generators():
    return [{kind}()]
'''

_STEPPED = '''\
"""The Studio plugin `{name}`: {does_lower}"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

import studio

if TYPE_CHECKING:
    import torch

studio_api = {api}  # the version of the plugin contract that this plugin needs
{constants}

@dataclass(frozen=True, kw_only=True, eq=False)
class {kind}State(studio.State):
    """The state of a request: `x`, and the `goal` it moves towards; float32 tensors of one shape, on the CPU."""

    x: torch.Tensor
    goal: torch.Tensor


class {kind}(studio.Generator):
    """{does}"""

    name = "{name}"
    output = studio.{output}

    class Inputs(studio.Inputs):
        {inputs}
        steps: int = studio.field(10, ge=1, le=1000, help="steps from noise to the goal")

    def load(self, ref, device, dtype):
        return device  # build your model here and return it; `weights` names the files that this reads

    def start(self, model, inputs, rng):
        import torch

        draw = np.random.default_rng(rng.seed)
{goal}        x = torch.rand(goal.shape, generator=rng.torch)  # on the CPU: a seed means the same on every device
        return {kind}State(steps=inputs.steps, x=x, goal=torch.from_numpy(goal).float())

    def step(self, model, states):
        import torch

        x = torch.stack([state.x for state in states]).to(model)  # (B, …)
        goal = torch.stack([state.goal for state in states]).to(model)
        left = torch.tensor([state.steps - state.position for state in states], device=x.device)
        x = (x + (goal - x) / left.reshape(-1, *[1] * (x.dim() - 1))).cpu()
        return [replace(state, position=state.position + 1, x=row.clone()) for state, row in zip(states, x)]

    def finish(self, model, state):
        x = state.x.numpy()
        return {media}

    def batch_key(self, state):
        return tuple(state.x.shape)


@studio.hookimpl
def studio_generators():
    return [{kind}()]
'''

_TEST = '''\
"""The conformance tests of the generator `{name}`. Run them with ``pytest``."""

import studio.testing
from {package} import {kind}


class Test{kind}(studio.testing.Conformance):
    generator = {kind}()
'''

_README = """\
# {name}

A plugin for Studio. {does}

```console
$ pip install -e .
$ studio plugins
$ studio generate {name} {sample} --seed 7 -o first{suffix}
$ studio plugins check {name}
$ pytest
```

The generator is in `{package}/__init__.py`: its inputs are declared once, and the command's options follow from that.
Build a model in `load(self, ref, device, dtype)`, the only method that reads weights; `weights(self, ref)` lists the
files that it reads. Import torch inside the methods, so that listing plugins stays fast.
"""


def files(name: str, package: str, family: str, stepped: bool) -> dict[str, str]:
    """Path within the folder -> text."""
    chosen = FAMILIES[family]
    kind = "".join(part.capitalize() for part in name.replace("-", "_").split("_") if part)
    kind += "Generator" if keyword.iskeyword(kind) else ""  # `none` would be the class `None`
    constants = CONSTANTS.get(family, "")
    words = {
        **vars(chosen),
        "name": name,
        "distribution": f"studio-{name}".replace("_", "-").rstrip("-"),
        "package": package,
        "kind": kind,
        "api": API,
        "needs": '"numpy>=1.26", "torch>=2.8"' if stepped else '"numpy>=1.26"',
        "constants": f"\n{constants}" if constants else "",
        "does_lower": chosen.does[0].lower() + chosen.does[1:],
    }
    return {
        "pyproject.toml": _PYPROJECT.format(**words),
        "README.md": _README.format(**words),
        f"{package}/__init__.py": (_STEPPED if stepped else _SIMPLE).format(**words),
        f"tests/test_{package.removeprefix('studio_')}.py": _TEST.format(**words),
    }
