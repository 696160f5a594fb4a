"""Finished runs in other formats: ONNX, torch.export, safetensors, MONAI bundles, capsules."""
