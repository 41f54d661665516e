"""Run the recipe: `python -m recipes.clip --help` lists its options."""

from recipes.command import main

main("starter-clip")
