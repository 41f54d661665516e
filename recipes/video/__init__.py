"""The video starter: synthesized motion of pictures, and animated emoji."""
