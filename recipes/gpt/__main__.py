"""Run the recipe: `python -m recipes.gpt --help` lists its options."""

from recipes.command import main

main("starter-gpt")
