"""What the training scripts share and that is not the method: data, batches, device, run folders."""
