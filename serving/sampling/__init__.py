"""A share of the requests and their answers, kept for monitoring: written to S3 as Parquet by a process of its own."""
