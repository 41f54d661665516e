"""Run the recipe: `python -m recipes.text --help` lists its options."""

from recipes.command import main

main("starter-text")
