"""Methods: the saliency of each unit, one file per criterion; a method is a value."""
