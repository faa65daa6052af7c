"""What is minimised: each loss is one short file, a recipe names it with a weight."""
