"""Ways for stock models of other libraries to run on `attend`, one library a file, each imported when used."""

from __future__ import annotations

from studio.devices import torch_setup

torch_setup.prepare()  # so that the libraries import beside a CPU build of torch, whoever imports them after this
