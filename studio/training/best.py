"""The weights that judged best so far, kept in a file of the run's folder, so that a run that goes on knows them.

Knows nothing of what is judged.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import safetensors.torch
import torch

from studio.errors import WeightsError
from studio.files import check_regular, write_atomically


class Best:
    """A module's best weights by a score of which more is better.

    Attributes:
        score: the best so far; minus infinity before the first.
    """

    def __init__(self, path: Path) -> None:
        """Take up what `path` holds, if anything. Raises WeightsError, which names it, if that is damaged."""
        self.path, self.score = path, -math.inf
        if path.exists():
            try:
                check_regular(path)
                with safetensors.safe_open(path, framework="pt") as file:
                    self.score = float(json.loads((file.metadata() or {})["score"]))
            except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
                reason = f"`{path}` does not hold kept weights, or damaged ones"
                raise WeightsError(path, reason, hint="remove it to begin anew") from error

    def offer(self, module: torch.nn.Module, score: float) -> bool:
        """Keep the module's weights if they score better than all before; whether they do."""
        if not score > self.score:
            return False
        weights = {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}  # tied ones apart
        write_atomically(self.path, safetensors.torch.save(weights, {"score": json.dumps(score)}))
        self.score = score
        return True

    def restore(self, module: torch.nn.Module) -> None:
        """Put the best weights into the module."""
        module.load_state_dict(safetensors.torch.load_file(self.path))
