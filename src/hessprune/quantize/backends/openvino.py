"""OpenVINO: it reads the same ONNX file as ONNX Runtime, with quantisers in the same places."""

from dataclasses import replace

from hessprune.quantize.backends import onnxruntime

BACKEND = replace(onnxruntime.BACKEND, name="openvino", package="openvino")
