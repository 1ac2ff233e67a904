"""Training: data, loss, loop, checkpoints. The loop needs torch, numpy and safetensors alone."""
