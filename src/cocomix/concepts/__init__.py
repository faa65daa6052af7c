"""The teacher's side: a pretrained model and its sparse autoencoder, concept labels, their cache and atlas."""
