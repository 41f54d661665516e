"""Where the data folder is. This module knows nothing of what lies in it.

Try it: ``python -c "from studio.home import default_home; print(default_home())"``
"""

from __future__ import annotations

import os
from pathlib import Path

from studio.files import expanded

HOME_VARIABLE = "STUDIO_HOME"


def default_home() -> Path:
    """The data folder: ``$STUDIO_HOME``, or where the platform keeps users' data."""
    if named := os.environ.get(HOME_VARIABLE):
        return expanded(named)
    return user_home()


def user_home() -> Path:
    """The data folder that is used when none is named: where the platform keeps users' data."""
    import platformdirs

    return Path(platformdirs.user_data_dir("multimodal-studio", appauthor=False))
