"""The web studio: read a text through its concepts, look at a concept, steer, compare runs."""
