"""Data sets by name, split and fingerprinted, and batches that can be read from any point."""

from hessprune.data.arrays import ImageArrays
from hessprune.data.batches import ImageBatches
from hessprune.data.dataset import Dataset
from hessprune.data.glue import read_sentences
from hessprune.data.image_folder import ImageFiles
from hessprune.data.sources import available_sources, load_dataset

__all__ = [
    "Dataset",
    "ImageArrays",
    "ImageBatches",
    "ImageFiles",
    "available_sources",
    "load_dataset",
    "read_sentences",
]
