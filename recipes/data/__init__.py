"""The data set of the starters: emoji and clip art, with words from WordNet and descriptions."""
