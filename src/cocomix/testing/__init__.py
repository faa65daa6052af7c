"""What tests need: tiny texts, models, autoencoders, processes."""
