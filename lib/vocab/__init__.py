"""Vocabularies that bpe.py does not train itself: readers of published files, WordPiece, Unigram."""
