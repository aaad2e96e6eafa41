"""Which version answers a request: sets of variants, degradation, roll-outs."""
