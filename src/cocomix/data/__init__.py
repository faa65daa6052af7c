"""Text → documents → tokens → shards → windows → batches."""
