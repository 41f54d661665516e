"""Let models of other libraries run on `attend`; one library per file, each imported when used."""

from __future__ import annotations

from studio.devices import torch_setup

torch_setup.prepare()  # so that the libraries can be imported with a CPU build of torch
