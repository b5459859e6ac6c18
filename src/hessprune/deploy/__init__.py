"""Deployment: ONNX files that are checked, and accuracy measured on modules and files alike."""
