"""Translating between two languages: learnt from pairs of sentences, scored on pairs never seen."""
