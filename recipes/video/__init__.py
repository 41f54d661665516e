"""The video starter: motion made from pictures, and animated emoji."""
