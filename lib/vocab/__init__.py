"""
Vocabularies: what bpe.py needs to read and write those of others, and to train WordPiece and
Unigram.

    common, base        what everything here and bpe.py share; the class Tokenizer
    count               how often each chunk of a text occurs, on all cores
    wordpiece, unigram  training of the two other kinds of subwords
    files               what is in a file or folder?
    spec                tokenizer.json, encoder.json + vocab.bpe, vocab.txt
    ranked, spiece      *.tiktoken; sentencepiece's models
    pipeline            runs the stages of a tokenizer.json: normalizers, splitters, models
    save                writes the layout that Hugging Face reads
    show                a text cut into its tokens, for a terminal

A reader never makes a tokenizer. It gives a description: the dict that `dumps()` writes as JSON and
that `bpe.loads` reads. So nothing in here imports bpe.py.
"""
