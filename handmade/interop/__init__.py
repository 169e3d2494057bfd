"""Weights to and from other libraries. Foreign names stop here, and none of those libraries is needed."""
