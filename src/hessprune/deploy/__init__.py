"""Deployment: export to checked ONNX files, and evaluation of modules and files."""
