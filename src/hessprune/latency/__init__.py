"""Latency, measured: whole models in turns, and tables of single layers in the runtime that will run them."""
