"""The embedded stack: S3 server, MLflow, Prefect server and worker, endpoint."""
