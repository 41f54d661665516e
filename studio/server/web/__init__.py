"""The page that `studio serve` shows to browsers. Its source is in ``src``, what is served in ``static``.

Try it: ``studio serve``; after a change of the source, ``make web``
"""
