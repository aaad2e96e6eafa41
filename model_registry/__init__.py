"""Values and truth: variants, manifests, the store, the ledger, the MLflow registry."""
