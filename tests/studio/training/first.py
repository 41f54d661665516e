"""Each process writes its rank into a file, the first of them after a while: `first.py FILE` under torchrun."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from studio.training.peers import Peers

if __name__ == "__main__":
    peers = Peers()
    with peers.first_alone():
        time.sleep(0 if peers.rank else 0.5)
        with Path(sys.argv[1]).open("a") as file:
            file.write(f"{peers.rank} begins\n")
        time.sleep(0.1)
        with Path(sys.argv[1]).open("a") as file:
            file.write(f"{peers.rank} ends\n")
