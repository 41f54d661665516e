"""Run the recipe: `python -m recipes.video --help` lists its options."""

from recipes.command import main

main("starter-video")
