"""Data sets by name, split and fingerprinted, and batches that can be read from any point."""

from hessprune.lab.data.arrays import ImageArrays
from hessprune.lab.data.batches import Batches, ImageBatches
from hessprune.lab.data.dataset import Dataset
from hessprune.lab.data.glue import read_sentences
from hessprune.lab.data.image_dataset import ImageDataset
from hessprune.lab.data.image_folder import ImageFiles
from hessprune.lab.data.sentences import Sentences, TextReading
from hessprune.lab.data.sources import available_sources, load_dataset
from hessprune.lab.data.text_dataset import TextBatches, TextDataset
from hessprune.lab.data.wikitext import RunningText, SequenceBatches

__all__ = [
    "Batches",
    "Dataset",
    "ImageArrays",
    "ImageBatches",
    "ImageDataset",
    "ImageFiles",
    "RunningText",
    "Sentences",
    "SequenceBatches",
    "TextBatches",
    "TextDataset",
    "TextReading",
    "available_sources",
    "load_dataset",
    "read_sentences",
]
