"""Data sets by name, split and fingerprinted, and batches that can be read from any point."""

from hessprune.lab.data.arrays import ImageArrays
from hessprune.lab.data.batches import ImageBatches
from hessprune.lab.data.dataset import Dataset
from hessprune.lab.data.glue import read_sentences
from hessprune.lab.data.image_folder import ImageFiles
from hessprune.lab.data.sources import available_sources, load_dataset

__all__ = [
    "Dataset",
    "ImageArrays",
    "ImageBatches",
    "ImageFiles",
    "available_sources",
    "load_dataset",
    "read_sentences",
]
