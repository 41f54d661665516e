"""Training scenes for the image starter: emoji on drawn backgrounds, with captions in English and Chinese.

`scene.py` defines a scene and samples one, `held_out.py` rejects combinations that are held out for evaluation,
`captions.py` captions it, `grounds.py`, `sprites.py` and `picture.py` draw it. README.md of `recipes` has the commands.
"""
