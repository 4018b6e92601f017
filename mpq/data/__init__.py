"""Manifests of audio and transcripts (lhotse), features, text corpora, batches."""
