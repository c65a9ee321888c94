"""The poems: downloaded, read, split, encoded and packed into batches."""
