"""CIFAR-10: where it comes from (`sources`), and its verified arrays (`cache`)."""
