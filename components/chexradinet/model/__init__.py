"""The classifier: residual network with triplet attention, losses, and the bundle it travels in."""
