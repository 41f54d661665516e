"""How the starters were made. Not installed; run from the project's folder, as `python -m recipes.scenes.latents`."""
