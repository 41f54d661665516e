"""Scenes composed of emoji on drawn grounds, with captions in English and Chinese, to train the image starter on.

`scene.py` says what a scene is and draws one at random, `held_out.py` refuses what is kept for judging, `captions.py`
words it, `grounds.py`, `sprites.py` and `picture.py` draw it. README.md of `recipes` has the commands.
"""
