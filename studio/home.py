"""The path of the data folder.

Try it: ``python -c "from studio.home import default_home; print(default_home())"``
"""

from __future__ import annotations

import os
from pathlib import Path

from studio.files import expanded

HOME_VARIABLE = "STUDIO_HOME"


def default_home() -> Path:
    """The data folder: ``$STUDIO_HOME``, or the platform's user data folder."""
    if named := os.environ.get(HOME_VARIABLE):
        return expanded(named)
    return user_home()


def user_home() -> Path:
    """The default data folder: the platform's user data folder."""
    import platformdirs

    return Path(platformdirs.user_data_dir("multimodal-studio", appauthor=False))
