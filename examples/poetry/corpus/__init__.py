"""The poems: fetched, read, split, encoded and packed into batches."""
