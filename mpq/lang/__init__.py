"""Words, phones and n-grams: lexicon, sentencepiece units, n-gram estimation and scoring."""
