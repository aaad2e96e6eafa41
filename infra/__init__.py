"""The embedded stack: S3 server, MLflow, Prefect server and worker, endpoint. Start with stack.py and recipes.py."""
