"""One file per backend; `quantize.backend` imports all files and reads the `BACKEND` of each."""
