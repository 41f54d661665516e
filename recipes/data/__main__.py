"""Run the recipe: `python -m recipes.data --help` lists its options."""

from recipes.command import main

main("starter-data")
