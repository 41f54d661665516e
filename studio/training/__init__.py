"""What training recipes share: a run that can be stopped and resumed, an average of weights, a log and its plot.

The loops themselves stay whole in each plugin's `train` modules; nothing here knows what is being trained.
"""
