"""What plugins add to `Studio`: a method that no class defines is looked for among those that plugins declare.

Editors and type checkers know those of Studio's own plugins. This module knows nothing else of a `Studio`.

Try it: ``python -c "import studio; print(studio.Studio().image)"``
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from studio.extensions import Method
    from studio.plugins import Plugins


class Methods:
    """The base of `Studio`: its plugins' methods, by the hook `studio_methods`."""

    if TYPE_CHECKING:
        import studio_clip.methods as _clip
        import studio_clip.search as _search
        import studio_diffusion.methods as _diffusion
        import studio_gpt.methods as _gpt
        import studio_video.methods as _video

        image, images = _diffusion.image, _diffusion.images
        video = _video.video
        text, chat, explain = _gpt.text, _gpt.chat, _gpt.explain
        embed, rank, label, search = _clip.embed, _clip.rank, _clip.label, _search.search

        plugins: Plugins

    else:

        def __getattr__(self, name: str) -> Any:
            """The method of a plugin. Raises AttributeError, and PluginError where its module cannot be imported."""
            if name.startswith("_") or hasattr(
                type(self), name
            ):  # a property that raised AttributeError raises it again
                return object.__getattribute__(self, name)
            if (method := self.plugins.methods.get(name)) is None:
                known = ", ".join(f"`{each}`" for each in self.plugins.methods) or "none"
                raise AttributeError(f"`Studio` has no method `{name}`; those of plugins: {known}", name=name, obj=self)
            return MethodType(load(method), self)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *self.plugins.methods})


def load(method: Method) -> Callable[..., Any]:
    """Import the function of a method. Raises PluginError."""
    from studio.errors import PluginError
    from studio.extensions import resolve
    from studio.plugins.hooks import explain, let_interrupt

    hint = "`studio plugins` lists the plugins, and what is wrong with each"
    try:
        function = resolve(method.target)
    except BaseException as error:  # a plugin may raise anything, SystemExit too
        let_interrupt(error)
        message = f"the method `{method.name}` cannot be loaded from `{method.target}`: {explain(error)}"
        raise PluginError(message, hint=hint) from error
    if not callable(function):
        kind = type(function).__name__
        message = f"the method `{method.name}`: `{method.target}` is {kind}; it must be a function"
        raise PluginError(message, hint=hint)
    return function  # type: ignore[no-any-return]
