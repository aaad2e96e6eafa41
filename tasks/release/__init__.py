"""Steps: register a chosen variant, and put a registered version into service by the ledger's protocol."""
