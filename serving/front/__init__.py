"""The HTTP front: connections, heads of requests, and what each path answers. No model runs here."""
