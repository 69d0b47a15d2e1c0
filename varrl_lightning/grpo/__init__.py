"""One way to make a gradient, without Lightning: a tree of images, credit, the loss."""
