"""The best weights of a run so far, in a file, so that a resumed run has them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import safetensors.torch
import torch

from studio.errors import WeightsError
from studio.files import check_regular, write_atomically


class Best:
    """A module's best weights by a score; higher is better.

    Attributes:
        score: the best so far; minus infinity before the first.
    """

    def __init__(self, path: Path) -> None:
        """Read the score at `path`, if there is a file. Raises WeightsError if it is damaged."""
        self.path, self.score = path, -math.inf
        if path.exists():
            try:
                check_regular(path)
                with safetensors.safe_open(path, framework="pt") as file:
                    self.score = float(json.loads((file.metadata() or {})["score"]))
            except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
                reason = f"`{path}` is not a file of best weights, or is damaged"
                raise WeightsError(path, reason, hint="remove it to start over") from error

    def offer(self, module: torch.nn.Module, score: float) -> bool:
        """Store the module's weights if their score is the best so far; return whether it is."""
        if not score > self.score:
            return False
        weights = {
            name: value.detach().cpu().clone() for name, value in module.state_dict().items()
        }  # clones: tied weights
        write_atomically(self.path, safetensors.torch.save(weights, {"score": json.dumps(score)}))
        self.score = score
        return True

    def restore(self, module: torch.nn.Module) -> None:
        """Load the best weights into the module."""
        module.load_state_dict(safetensors.torch.load_file(self.path))
