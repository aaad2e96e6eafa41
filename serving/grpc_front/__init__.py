"""The protocol over gRPC: a process of its own that hands every call to the HTTP front, and knows no model."""
