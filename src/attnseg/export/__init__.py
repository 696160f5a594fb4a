"""Finished runs in other formats: ONNX, torch.export, safetensors, capsules."""
